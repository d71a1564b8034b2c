from jaxinterp.activations.compilation import drop_untimed


def test_programs_that_a_killed_process_left_do_not_stop_others_from_being_kept(tmp_path):
    for name in ("a-cache", "a-atime", "b-cache", "c-atime", "other"):
        (tmp_path / name).write_bytes(b"")
    drop_untimed(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a-atime", "a-cache", "c-atime", "other"]
    drop_untimed(tmp_path / "none")

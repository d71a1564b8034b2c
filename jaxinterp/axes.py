"""The vocabulary: axis names, sites and weights, each written down once.

Every named array in the library takes its axis names from here, every selector its site names, and every
converter its weight names.
"""

from __future__ import annotations

BATCH = "batch"
SEQ = "seq"
KV_SEQ = "kv_seq"
EMBEDDING = "embedding"
PROJECTION = "projection"
HEAD = "head"
KV_HEAD = "kv_head"
NEURONS = "neurons"
VOCABULARY = "vocabulary"
CONTEXT = "context"
COMPONENT = "component"
RANK = "rank"
WORLDS = "worlds"

_STREAM = (BATCH, SEQ, EMBEDDING)
_UNITS = (BATCH, SEQ, NEURONS)
_QUERIES = (BATCH, SEQ, HEAD, PROJECTION)
_KEYS = (BATCH, SEQ, KV_HEAD, PROJECTION)
_ATTENTION = (BATCH, HEAD, SEQ, KV_SEQ)

SITES: dict[str, tuple[tuple[str, ...], str]] = {
    "embed": (_STREAM, "token embedding, after the family's scaling, before learned positions"),
    "resid_pre": (_STREAM, "residual stream entering the block"),
    "ln_scale": ((BATCH, SEQ), "denominator of the norm in front of attention"),
    "q": (_QUERIES, "queries, after bias, query norm and rotary positions"),
    "k": (_KEYS, "keys, after bias, key norm and rotary positions"),
    "v": (_KEYS, "values"),
    "attn_scores": (_ATTENTION, "scaled (and soft-capped) scores, before the mask"),
    "pattern": (_ATTENTION, "attention probabilities"),
    "z": (_QUERIES, "pattern-weighted values of each head, before W_O"),
    "head_out": ((BATCH, SEQ, HEAD, EMBEDDING), "contribution of each head to the residual stream, without b_O"),
    "attn_out": (_STREAM, "what attention adds to the residual stream"),
    "resid_mid": (_STREAM, "residual stream between attention and MLP"),
    "ln_scale_mlp": ((BATCH, SEQ), "denominator of the norm in front of the MLP"),
    "mlp_gate": (_UNITS, "gate pre-activation of a gated MLP"),
    "mlp_pre": (_UNITS, "linear branch of a gated MLP, or the pre-activation of a plain one"),
    "mlp_post": (_UNITS, "unit activations, before W_out"),
    "mlp_out": (_STREAM, "what the MLP adds to the residual stream"),
    "resid_post": (_STREAM, "residual stream leaving the block"),
    "ln_final": (_STREAM, "output of the final norm"),
    "logits": ((BATCH, SEQ, VOCABULARY), "next-token logits, after any soft cap"),
}
"""Site name -> (axes of the array that passes there, what it is), in the order of the forward pass."""

UNLAYERED = ("embed", "ln_final", "logits")
"""Sites that stand once in the model rather than once per block."""

"""BERT's forward pass in float64 NumPy, by the names and shapes of Hugging Face's files."""

from collections.abc import Mapping

import numpy as np

EPSILON = 1e-12


class NumpyBert:
    """Devlin et al. 2018, post-LN, with the tanh approximation of GELU."""

    def __init__(self, tensors: Mapping[str, np.ndarray], num_layers: int, num_heads: int) -> None:
        self._tensors = {name: np.asarray(value, np.float64) for name, value in tensors.items()}
        self._num_layers, self._num_heads = num_layers, num_heads

    def sequence_output(self, ids: np.ndarray, mask: np.ndarray, types: np.ndarray) -> np.ndarray:
        tables = [
            self._tensors[f"bert.embeddings.{name}_embeddings.weight"]
            for name in ("word", "position", "token_type")
        ]
        x = tables[0][ids] + tables[1][: ids.shape[1]] + tables[2][types]
        x = self._norm(x, "bert.embeddings")
        for index in range(self._num_layers):
            layer = f"bert.encoder.layer.{index}"
            attended = self._dense(
                self._attention(x, mask, f"{layer}.attention.self"), f"{layer}.attention.output"
            )
            x = self._norm(x + attended, f"{layer}.attention.output")
            inner = _gelu(self._dense(x, f"{layer}.intermediate"))
            x = self._norm(x + self._dense(inner, f"{layer}.output"), f"{layer}.output")
        return x

    def pooled_output(self, sequence: np.ndarray) -> np.ndarray:
        return np.tanh(self._dense(sequence[:, 0], "bert.pooler"))

    def next_sentence_logits(self, sequence: np.ndarray) -> np.ndarray:
        pooled = self.pooled_output(sequence)
        weight = self._tensors["cls.seq_relationship.weight"]
        return pooled @ weight.T + self._tensors["cls.seq_relationship.bias"]

    def masked_lm_logits(self, sequence: np.ndarray, positions: np.ndarray) -> np.ndarray:
        x = np.take_along_axis(sequence, positions[:, :, None], axis=1)
        x = _gelu(self._dense(x, "cls.predictions.transform"))
        x = self._norm(x, "cls.predictions.transform")
        words = self._tensors["bert.embeddings.word_embeddings.weight"]
        return x @ words.T + self._tensors["cls.predictions.bias"]

    def _dense(self, x: np.ndarray, name: str) -> np.ndarray:
        return x @ self._tensors[f"{name}.dense.weight"].T + self._tensors[f"{name}.dense.bias"]

    def _norm(self, x: np.ndarray, name: str) -> np.ndarray:
        centred = x - x.mean(-1, keepdims=True)
        scaled = centred / np.sqrt(x.var(-1, keepdims=True) + EPSILON)
        weight, bias = (self._tensors[f"{name}.LayerNorm.{part}"] for part in ("weight", "bias"))
        return scaled * weight + bias

    def _attention(self, x: np.ndarray, mask: np.ndarray, name: str) -> np.ndarray:
        query, key, value = (
            np.stack(
                np.split(
                    x @ self._tensors[f"{name}.{part}.weight"].T
                    + self._tensors[f"{name}.{part}.bias"],
                    self._num_heads,
                    axis=-1,
                ),
                axis=1,
            )
            for part in ("query", "key", "value")
        )
        scores = query @ key.swapaxes(-1, -2) / np.sqrt(query.shape[-1])
        scores = np.where(mask[:, None, None, :] == 1, scores, -np.inf)
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        weights /= weights.sum(-1, keepdims=True)
        return np.concatenate(list((weights @ value).swapaxes(0, 1)), axis=-1)


def _gelu(x: np.ndarray) -> np.ndarray:
    return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))

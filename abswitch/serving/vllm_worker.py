"""What runs inside vLLM's worker processes: a reload of weights that reaches tied output layers, too.

vLLM's own reload fills the input embedding and leaves an output layer that is tied to it as it was: on a CPU its packed
copy of the old weights goes on computing every token (with vLLM 0.32, none of 200 answers were the new checkpoint's).
"""

from __future__ import annotations

from typing import Any

WORKER_EXTENSION = f"{__name__}.ReloadingWorker"
"""For vLLM's engine argument `worker_extension_cls`."""


class ReloadingWorker:
    """Becomes a base class of vLLM's worker; its methods are called through `collective_rpc`."""

    model_runner: Any
    reload_weights: Any

    def reload_tied_weights(self, weights_path: str | None = None) -> int:
        """Load weights in place, then give every tied output layer the input embedding's.

        Args:
            weights_path: folder of another checkpoint of the same network; by default the one that was loaded last.

        Returns:
            How many output layers were tied anew.
        """
        self.reload_weights(**({} if weights_path is None else {"weights_path": weights_path}))
        model = self.model_runner.get_model()
        config = self.model_runner.model_config.hf_text_config
        return tie_outputs(model) if getattr(config, "tie_word_embeddings", False) else 0


def tie_outputs(model: Any) -> int:
    """Have each output layer use the input embedding's weights, packed again as its kernel wants them.

    Returns:
        How many there were; 0 where the output layer *is* the embedding, which a reload fills.

    Raises:
        RuntimeError: an output layer and no embedding of its shape.
    """
    from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead, VocabParallelEmbedding

    layers = list(model.modules())
    outputs = [layer for layer in layers if isinstance(layer, ParallelLMHead)]
    inputs = [
        layer for layer in layers if isinstance(layer, VocabParallelEmbedding) and not isinstance(layer, ParallelLMHead)
    ]
    for output in outputs:
        like = [layer for layer in inputs if layer.weight.shape == output.weight.shape]
        if not like:
            raise RuntimeError(f"the output layer is tied, and no embedding has its shape {tuple(output.weight.shape)}")
        output.tie_weights(like[0])
        output.quant_method.process_weights_after_loading(output)
    return len(outputs)

"""A causal language model on one device: it loads, generates, and reads given text (needs torch).

Shared by the miner's worker, which generates, and the validator's, which reads what a miner generated.
"""

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal, Self

import numpy as np
import numpy.typing as npt
import torch

from protocol.errors import ConfigError, QuasarError
from roles.inference.decoding import Decoder, Generation, PlainDecoder
from roles.kernels_package import check_kernels_package

if TYPE_CHECKING:
    from roles.inference.graph_decoding import StaticDecoder
    from roles.inference.warm_up import Progress

FEW_PARAMETERS: Final = 10_000_000
"""A model smaller than this gains nothing from more than one CPU thread."""
MAX_REASON_CHARS: Final = 300


class OutOfDeviceMemory(QuasarError):
    """The request does not fit into the device's memory; the model is still there."""


@dataclass(frozen=True, slots=True)
class Examination:
    """What a model says of an answer of `G` tokens."""

    logits: npt.NDArray[np.float32]
    """`[V]` at the step asked for."""
    gaps: list[float]
    """`[G]`: by how much each token's logit lies below the largest; NaN where logits are."""


class Engine:
    """One loaded model; not safe for threads, one call at a time.

    float16 on CUDA, because bfloat16 logits miss the subnet's limit of 0.1, and float32 on the CPU. The
    validator's reference is float32 everywhere: what it measures is then the miner's rounding alone.
    """

    def __init__(
        self, model: Any, name: str, device: torch.device, *, trust_remote_code: bool = False
    ) -> None:
        self._model = model
        self._name = name
        self._device = device
        self._trust_remote_code = trust_remote_code
        self._config = model.config.get_text_config()
        self._context_length = _context_length(self._config, name)
        self._vocab_size = int(model.get_output_embeddings().weight.shape[0])
        self._plain = PlainDecoder(model, device)
        self._static: StaticDecoder | None = None
        self._decoder: Decoder = self._plain
        self.warning: str | None = None
        """Why answers are decoded by the plain loop on a GPU, once `warm_up` has ended."""

    @classmethod
    def load(
        cls,
        name: str,
        device: str,
        *,
        trust_remote_code: bool = False,
        dtype: Literal["auto", "float32"] = "auto",
    ) -> Self:
        """Load a model by its name or from a folder.

        Raises ConfigError: there is no such model, it is no causal language model, or the device is missing.
        """
        target = torch.device(device)
        if target.type == "cuda" and not torch.cuda.is_available():
            raise ConfigError(
                f'device "{device}" but torch sees no CUDA GPU: check the driver, or set DEVICE=cpu'
            )
        transformers = _quiet_transformers()
        # Half-precision sums in half-precision products cost more accuracy than they give speed.
        torch.backends.cuda.matmul.allow_fp16_reduced_precision_reduction = False
        # cuDNN's attention adds in another order from one run to the next: equal requests, other tokens.
        torch.backends.cuda.enable_cudnn_sdp(False)
        try:
            model: Any = transformers.AutoModelForCausalLM.from_pretrained(
                name,
                dtype=torch.float16 if target.type == "cuda" and dtype == "auto" else torch.float32,
                trust_remote_code=trust_remote_code,
            )
        except (OSError, ValueError, KeyError, ImportError) as error:
            raise ConfigError(f"model {name!r} cannot be loaded: {_first_line(error)}") from error
        if target.type != "cpu" or model.num_parameters() < FEW_PARAMETERS:
            # What is left for the processor takes less than to wake its threads.
            torch.set_num_threads(1)
        try:
            model = model.to(target).eval().requires_grad_(False)
        except torch.cuda.OutOfMemoryError as error:
            raise OutOfDeviceMemory(
                f"model {name!r} does not fit into the free memory of {device}: {_first_line(error)}"
            ) from error
        return cls(model, name, target, trust_remote_code=trust_remote_code)

    @property
    def model(self) -> Any:
        """The transformers model."""
        return self._model

    def in_float16(self) -> "Engine":
        """The same weights in float16: what rounding does to them. Raises OutOfDeviceMemory."""
        try:
            rounded = copy.deepcopy(self._model).to(torch.float16)
        except torch.cuda.OutOfMemoryError as error:
            raise OutOfDeviceMemory(f"{self._device} has no memory for the model in float16 too") from error
        return self.with_model(rounded)

    def with_model(self, model: Any) -> "Engine":
        """An engine of another model on the same device."""
        return Engine(model, self._name, self._device)

    def info(self) -> dict[str, Any]:
        """Describe the model: the fields of `protocol.messages.ModelInfo`."""
        return {
            "model_name": self._name,
            "vocab_size": self._vocab_size,
            "dtype": str(self._model.dtype).removeprefix("torch."),
            "device": str(self._device),
            "num_layers": int(self._config.num_hidden_layers),
            "hidden_size": int(self._config.hidden_size),
            "context_length": self._context_length,
        }

    def warm_up(self) -> "Iterator[Progress]":
        """Capture the steps of decoding as CUDA graphs, a part for each turn of the iterator.

        Where that is not possible, or a graph does not answer as the plain loop does, the plain loop stays
        and `warning` says why. Nothing is to be done on a CPU.
        """
        if self._device.type != "cuda":
            return
        # Imports the library, whose name of a package must have been checked before.
        from roles.inference.warm_up import WarmUp

        work = WarmUp(self._model, self._device, self._context_length, self.examine)
        self._static, self.warning = yield from work.run()

    @property
    def decoding(self) -> str:
        """How answers are made: `cuda graphs` or `plain loop`."""
        return "plain loop" if self._static is None else "cuda graphs"

    def begin(self, prompt: list[int], gen_len: int, logits_at_step: int | None) -> None:
        """Take up a greedy answer of `gen_len` tokens; what was under way is dropped. Raises QuasarError."""
        self._check_tokens(prompt, room_for=gen_len)
        self._decoder.drop()
        has_room = self._static is not None and len(prompt) + gen_len <= self._static.length
        self._decoder = self._static if self._static is not None and has_room else self._plain
        self._decoder.begin(prompt, gen_len, logits_at_step)

    def advance(self, budget_s: float) -> Generation | None:
        """Work on the answer for about `budget_s` seconds; returns it once finished.

        Raises OutOfDeviceMemory, LogitsNotFinite.
        """
        try:
            return self._decoder.advance(budget_s)
        except torch.cuda.OutOfMemoryError as error:
            raise self._out_of_memory() from error

    @torch.inference_mode()
    def read(self, prompt: list[int], tokens: list[int]) -> npt.NDArray[np.float32]:
        """Logits `[G, V]` from which each of `tokens` `[G]` would be taken, in one forward pass.

        Row i is the distribution after the prompt and the first i tokens. Raises QuasarError,
        OutOfDeviceMemory.
        """
        try:
            rows: npt.NDArray[np.float32] = self._rows(prompt, tokens).cpu().numpy()
        except torch.cuda.OutOfMemoryError as error:
            raise self._out_of_memory() from error
        return rows

    @torch.inference_mode()
    def examine(self, prompt: list[int], tokens: list[int], step: int) -> Examination:
        """Read an answer as `read` does; only what a verdict needs leaves the device. Raises as `read`."""
        try:
            rows = self._rows(prompt, tokens)
            chosen = rows.gather(1, torch.tensor(tokens, device=self._device)[:, None])[:, 0]
            gaps = rows.amax(dim=1) - chosen
            return Examination(rows[step - 1].cpu().numpy(), gaps.tolist())
        except torch.cuda.OutOfMemoryError as error:
            raise self._out_of_memory() from error

    def _rows(self, prompt: list[int], tokens: list[int]) -> torch.Tensor:
        self._check_tokens(prompt + tokens, room_for=0)
        given = torch.tensor([prompt + tokens[:-1]], dtype=torch.long, device=self._device)
        logits = self._model(input_ids=given, use_cache=False, logits_to_keep=len(tokens)).logits
        rows: torch.Tensor = logits[0].float()
        return rows

    def ordinary_tokens(self) -> list[int]:
        """Token ids that stand for text: neither special nor added to the vocabulary. Raises ConfigError."""
        transformers = _quiet_transformers()
        try:
            tokenizer = transformers.AutoTokenizer.from_pretrained(
                self._name, trust_remote_code=self._trust_remote_code
            )
        except (OSError, ValueError, KeyError, ImportError) as error:
            raise ConfigError(
                f"the tokenizer of {self._name!r} cannot be loaded: {_first_line(error)}"
            ) from error
        excluded = set(tokenizer.all_special_ids) | set(tokenizer.added_tokens_decoder)
        return [token for token in range(min(len(tokenizer), self._vocab_size)) if token not in excluded]

    def _check_tokens(self, tokens: list[int], *, room_for: int) -> None:
        # A token outside the vocabulary would poison the CUDA context of everybody after this request.
        wrong = next((token for token in tokens if not 0 <= token < self._vocab_size), None)
        if wrong is not None or not tokens:
            raise QuasarError(f"token {wrong} is outside the vocabulary 0..{self._vocab_size - 1}")
        if len(tokens) + room_for > self._context_length:
            raise QuasarError(f"{len(tokens) + room_for} tokens exceed the context of {self._context_length}")

    def _out_of_memory(self) -> OutOfDeviceMemory:
        self._decoder.drop()
        torch.cuda.empty_cache()
        return OutOfDeviceMemory(f"{self._device} has no memory left for this request: ask for fewer tokens")


def _quiet_transformers() -> Any:
    """The library, without its progress bars; imported late, because that takes seconds."""
    check_kernels_package()
    import transformers
    from transformers.utils import logging

    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    return transformers


def _context_length(config: Any, name: str) -> int:
    length = getattr(config, "max_position_embeddings", None)
    if not isinstance(length, int) or length < 2:
        raise ConfigError(f"model {name!r} states no context length (max_position_embeddings): serve another")
    return length


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:MAX_REASON_CHARS]

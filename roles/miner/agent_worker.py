"""The process that holds a language model for one answer: `python -m roles.miner.agent_worker`."""

import sys
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Final

from node.device_turns import BackgroundTurn
from node.worker_main import serve
from protocol.errors import ConfigError, QuasarError

TURN_PATIENCE_S: Final = 1800.0


def main() -> int:
    """Serve calls until the parent closes stdin."""
    serve({"complete": complete})
    return 0


def complete(params: dict[str, Any]) -> dict[str, Any]:
    """Load the model, answer one prompt.

    Raises ConfigError when it cannot be loaded, QuasarError when the prompt does not fit into its context.
    """
    from roles.kernels_package import check_kernels_package

    check_kernels_package()
    import torch
    import transformers

    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(params["model"])
        dtype = torch.float32 if params["device"] == "cpu" else torch.bfloat16
        model = transformers.AutoModelForCausalLM.from_pretrained(params["model"], dtype=dtype)
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise ConfigError(f"agent.model {params['model']!r} cannot be loaded: {error}"[:500]) from error
    model = model.to(params["device"]).eval()
    tokens = _tokens(tokenizer, params["system"], params["user"])
    context = int(getattr(model.config.get_text_config(), "max_position_embeddings", 0))
    room = context - len(tokens)
    if room < 1:
        raise QuasarError(
            f"the prompt has {len(tokens):,} tokens and the context of agent.model {params['model']!r} is "
            f"{context:,}: use a model with a longer one"
        )
    given = torch.tensor([tokens], device=params["device"])
    is_sampled = params["temperature"] > 0
    with _turn(params["device"]), torch.inference_mode():
        answer = model.generate(
            given,
            attention_mask=torch.ones_like(given),
            max_new_tokens=min(params["max_tokens"], room),
            do_sample=is_sampled,
            temperature=params["temperature"] if is_sampled else None,
            top_p=None,
            top_k=None,
            pad_token_id=tokenizer.pad_token_id or tokenizer.eos_token_id,
        )
    return {"text": tokenizer.decode(answer[0, len(tokens) :], skip_special_tokens=True)}


def _turn(device: str) -> AbstractContextManager[object]:
    """The turn on a GPU, so that nobody measures beside the model."""
    return nullcontext() if device == "cpu" else BackgroundTurn(device, timeout_s=TURN_PATIENCE_S)


def _tokens(tokenizer: Any, system: str, user: str) -> list[int]:
    """The prompt as the model was taught, or plain text for a model without a template."""
    if tokenizer.chat_template is None:
        return list(tokenizer(f"{system}\n\n{user}\n\n")["input_ids"])
    messages = [{"role": "system", "content": system}, {"role": "user", "content": user}]
    text = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


if __name__ == "__main__":
    sys.exit(main())

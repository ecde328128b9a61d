"""What may be asked of the model: one sentence, with the value, for everything that may not."""

from node.http_server import ApiProblem
from protocol.messages import InferenceRequest, ModelInfo


def check_request(request: InferenceRequest, model: ModelInfo, *, max_gen_len: int) -> None:
    """Raise ApiProblem 422 when the model must not see the request.

    Both bounds of a token are checked: one id outside the vocabulary kills the model's process.
    """
    top = model.vocab_size - 1
    for index, token in enumerate(request.prompt):
        if not 0 <= token <= top:
            raise _problem(f"prompt[{index}] is token {_show(token)}, outside the vocabulary 0..{top}")
    if request.gen_len > max_gen_len:
        raise _problem(f"gen_len is {_show(request.gen_len)}: at most {max_gen_len} tokens are generated")
    total = len(request.prompt) + request.gen_len
    if total > model.context_length:
        raise _problem(
            f"prompt and gen_len together are {total} tokens, "
            f"beyond the model's context of {model.context_length}"
        )
    step = request.logits_at_step
    if step is not None and step > request.gen_len:
        raise _problem(f"logits_at_step is {_show(step)}, outside 1..{request.gen_len} (gen_len)")


def _problem(sentence: str) -> ApiProblem:
    return ApiProblem(422, sentence)


def _show(number: int) -> str:
    # Printing a number of thousands of digits is slow, and Python refuses it beyond a limit.
    return str(number) if number.bit_length() <= 64 else f"of {number.bit_length()} bits"

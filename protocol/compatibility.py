"""Messages of the endpoints that the existing network's clients call, beside those of `protocol.messages`."""

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from protocol.messages import Answer, HotkeyText


class LooseMessage(BaseModel):
    """Base of bodies whose further fields are ignored: those clients send more than is read here."""

    model_config = ConfigDict(extra="ignore", frozen=True, cache_strings="keys")


class RegisterMiner(LooseMessage):
    """Body of POST /register_miner."""

    hotkey: HotkeyText
    model_name: Annotated[str, Field(max_length=256)] = ""
    league: Annotated[str, Field(max_length=16)] = ""


class RegisterMinerAnswer(Answer):
    """Answer of POST /register_miner: registration is the chain's, and this says what the chain says."""

    status: str
    hotkey: str
    uid: int
    model_name: str
    league: str


class WeightEntry(Answer):
    """One hotkey's share of the reward."""

    uid: int
    hotkey: str
    weight: float


class Weights(Answer):
    """Answer of GET /get_weights: the shares of the ranking as it stands."""

    epoch: int
    """Height of the chain."""
    round_number: int
    weights: list[WeightEntry]


class SubmissionRate(Answer):
    """Answer of GET /get_submission_rate."""

    submissions_per_minute: float
    recent_submissions: int
    window_minutes: int


class VerificationStats(Answer):
    """Answer of GET /verification_stats: logit verification of the hotkeys that were checked lately."""

    total_submissions: int
    verified_passed: int
    verified_failed: int
    pending_verification: int
    pass_rate: float | None


class MarkValidated(LooseMessage):
    """Body of POST /mark_validated."""

    submission_id: Annotated[int, Field(ge=1, lt=2**63)]


class RecordFailure(LooseMessage):
    """Body of POST /record_failure."""

    submission_id: Annotated[int, Field(ge=1, lt=2**63)]


class CreateRound(LooseMessage):
    """Body of POST /create_round."""

    duration_hours: Any = None


class Acknowledged(Answer):
    """Answer of the writing ones."""

    status: str
    submission_id: int

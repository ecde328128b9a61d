"""Wire formats of the subnet API, the inference server and the referee (pydantic, shared by both ends)."""

import math
from datetime import datetime
from typing import Annotated, Any, Final, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints

from protocol.rules import MAX_TARGET_SEQUENCE_LENGTH, MIN_SALT_BYTES
from protocol.verdicts import Fault, Isolation, LeadOutcome, LogitOutcome, Status


def _require_finite_positive(value: float) -> float:
    if not (math.isfinite(value) and value > 0):
        raise ValueError(f"must be a finite number above 0, not {value!r}")
    return value


def _require_finite(value: float) -> float:
    if not math.isfinite(value):
        raise ValueError(f"must be a finite number, not {value!r}")
    return value


HotkeyText = Annotated[
    str, StringConstraints(min_length=40, max_length=64, pattern=r"^[1-9A-HJ-NP-Za-km-z]+$")
]
Sha256Text = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
CommitHashText = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{40}$")]
SaltText = Annotated[
    str, StringConstraints(min_length=2 * MIN_SALT_BYTES, max_length=256, pattern=r"^[0-9a-f]+$")
]
SignatureText = Annotated[str, StringConstraints(max_length=256, pattern=r"^(0x)?[0-9a-fA-F]+$")]
UrlText = Annotated[str, StringConstraints(min_length=1, max_length=512)]
TargetLength = Annotated[int, Field(ge=1, le=MAX_TARGET_SEQUENCE_LENGTH, strict=True)]
Throughput = Annotated[float, AfterValidator(_require_finite_positive)]
"""Tokens per second; NaN, infinities, zero and negative numbers are refused on arrival."""
Finite = Annotated[float, AfterValidator(_require_finite)]


class Message(BaseModel):
    """Base of every message: unknown fields are errors, instances do not change."""

    # Values are signatures, hashes and nonces: remembered strings would only fill the memory.
    model_config = ConfigDict(extra="forbid", frozen=True, cache_strings="keys")


class Answer(BaseModel):
    """Base of what servers answer: clients tolerate fields added by a newer server."""

    model_config = ConfigDict(extra="ignore", frozen=True, cache_strings="keys")


# --- miners -------------------------------------------------------------------------------------------------


class BenchmarkRow(Message):
    """What a miner measured at one sequence length (informational)."""

    tokens_per_sec: Throughput
    vram_mb: Finite | None = None


Benchmarks = Annotated[
    dict[Annotated[str, StringConstraints(pattern=r"^[0-9]{1,8}$")], BenchmarkRow], Field(max_length=32)
]


class SubmitKernel(Message):
    """Body of POST /submit_kernel: a direct submission."""

    miner_hotkey: HotkeyText
    fork_url: UrlText
    commit_hash: CommitHashText
    repo_hash: Annotated[str, StringConstraints(max_length=128)] | None = None
    target_sequence_length: TargetLength
    tokens_per_sec: Throughput
    vram_mb: Finite | None = None
    benchmarks: Benchmarks | None = None
    signature: SignatureText


class SubmitKernelAnswer(Answer):
    """Answer of POST /submit_kernel."""

    submission_id: int
    miner_hotkey: str
    fork_url: str
    commit_hash: str
    target_sequence_length: int
    tokens_per_sec: float
    created_at: datetime


class CommitSubmission(Message):
    """Body of POST /commit_submission: phase 1 of commit-reveal."""

    miner_hotkey: HotkeyText
    commitment_hash: Sha256Text
    target_sequence_length: TargetLength
    is_anchored: bool = False
    """The hotkey's commitment on chain holds the hash; not signed, because the API asks the chain."""
    signature: SignatureText


class Receipt(Answer):
    """The API's signed word that it took a commitment in a block."""

    submission_id: int
    commitment_hash: str
    block_number: int
    block_hash: str
    api_hotkey: str
    signature: str


class CommitSubmissionAnswer(Answer):
    """Answer of POST /commit_submission."""

    submission_id: int
    commitment_hash: str
    reveal_block: int
    expires_block: int
    estimated_reveal_time: datetime
    message: str
    receipt: Receipt


class RevealSubmission(Message):
    """Body of POST /reveal_submission: phase 2 of commit-reveal."""

    submission_id: Annotated[int, Field(ge=1, strict=True)]
    miner_hotkey: HotkeyText
    commitment_salt: SaltText
    fork_url: UrlText
    commit_hash: CommitHashText
    tokens_per_sec: Throughput
    vram_mb: Finite | None = None
    benchmarks: Benchmarks | None = None
    signature: SignatureText


class RevealSubmissionAnswer(Answer):
    """Answer of POST /reveal_submission."""

    submission_id: int
    miner_hotkey: str
    fork_url: str
    commit_hash: str
    is_revealed: bool
    message: str


class PendingReveal(Answer):
    """One commitment that waits for its reveal."""

    submission_id: int
    miner_hotkey: str
    commitment_hash: str
    """First 16 digits and "..."."""
    reveal_block: int
    blocks_remaining: int
    can_reveal: bool
    created_at: datetime


class PendingReveals(Answer):
    """Answer of GET /pending_reveals."""

    current_block: int
    pending_reveals: list[PendingReveal]


# --- statistics ---------------------------------------------------------------------------------------------


class SubmissionSummary(Answer):
    """A submission as the public lists show it; URL and hash only once a verdict exists."""

    submission_id: int
    miner_hotkey: str
    fork_url: str | None
    commit_hash: str | None
    target_sequence_length: int
    league: str
    tokens_per_sec: float
    """The claim."""
    measured_tokens_per_sec: float | None
    weighted_score: float | None
    """Of the measurement, never of the claim."""
    status: str
    """`queued`, `evaluating`, or a verdict's status."""
    created_at: datetime


class SubmissionStats(Answer):
    """Aggregate of measured throughput."""

    avg_tokens_per_sec: float | None
    max_tokens_per_sec: float | None
    min_tokens_per_sec: float | None
    total_submissions: int


class SubmissionStatsAnswer(Answer):
    """Answer of GET /get_submission_stats."""

    total_submissions: int
    recent_submissions: list[SubmissionSummary]
    stats: SubmissionStats
    top_performers: list[SubmissionSummary]


class CurrentRound(Answer):
    """Answer of GET /get_current_round."""

    id: int
    round_number: int
    start_time: datetime
    end_time: datetime
    status: str
    time_remaining_seconds: int
    baseline_submission_id: int | None
    winner_hotkey: str | None
    total_submissions: int


class LeaderboardRow(Answer):
    """One place of the leaderboard."""

    place: int
    submission_id: int
    miner_hotkey: str
    league: str
    target_sequence_length: int
    tokens_per_sec: float
    """Measured."""
    weighted_score: float
    share: float
    code_fixed_at: datetime


class Leaderboard(Answer):
    """Answer of GET /leaderboard."""

    rules_version: int
    current_block: int
    round_number: int
    rows: list[LeaderboardRow]


class ApiInfo(Answer):
    """Answer of GET /info: to whom requests are bound, and the limits in force."""

    hotkey: str
    network: str
    netuid: int
    rules_version: int
    blocks_until_reveal: int
    reveal_window_blocks: int
    max_target_sequence_length: int
    allowed_git_hosts: list[str]
    limits: dict[str, int]


class Health(Answer):
    """Answer of GET /health."""

    status: str


# --- validators ---------------------------------------------------------------------------------------------


class LeaseAnswer(Answer):
    """Answer of POST /evaluations/lease; 204 without a body means that the queue is empty."""

    lease_id: str
    submission_id: int
    miner_hotkey: str
    fork_url: str
    commit_hash: str
    target_sequence_length: int
    claimed_tokens_per_sec: float
    code_fixed_at: datetime
    """When the code was fixed: orders ties."""
    round_number: int
    expires_at: datetime
    heartbeat_s: float


class HeartbeatAnswer(Answer):
    """Answer of POST /evaluations/{submission_id}/heartbeat."""

    expires_at: datetime


class Heartbeat(Message):
    """Body of POST /evaluations/{submission_id}/heartbeat."""

    lease_id: Annotated[str, StringConstraints(max_length=64)]


SHORT_OF_MEMORY: Final = "short_of_memory"
"""In the evidence of an `infrastructure` verdict: true when the GPU had too little memory to go on."""


class Figures(Message):
    """What the referee found: the part of a verdict that its decision rests on."""

    status: Status
    fault: Fault
    measured_tokens_per_sec: Finite | None = None
    """Median over all trials, yardstick-checked."""
    spread: Finite | None = None
    """Interquartile range of the trials over the measured time."""
    cosine_similarity: Finite | None = None
    """The worst over tokens, heads and trials."""
    max_abs_diff: Finite | None = None
    relative_error: Finite | None = None
    vram_mb: Finite | None = None
    gpu: str
    """Device name, or `cpu`."""
    versions: dict[str, str]
    rules_version: int
    fingerprint: Annotated[str, StringConstraints(max_length=64)] | None = None
    """Of the five target files; a copy has the same. None when they could not be read."""
    evidence: dict[str, Any]
    """Reason, seeds, shapes, per-stage seconds, trial times, log tail without secrets."""

    @property
    def is_short_of_memory(self) -> bool:
        """Whether it ended for want of the GPU's memory, the submission's own or the referee's."""
        return self.status is Status.OUT_OF_MEMORY or self.evidence.get(SHORT_OF_MEMORY) is True


class Verdict(Figures):
    """Body of POST /evaluations/{submission_id}/verdict, signed by the validator."""

    lease_id: Annotated[str, StringConstraints(max_length=64)]
    submission_id: Annotated[int, Field(ge=1)]
    validator_hotkey: HotkeyText
    signature: SignatureText


class VerdictAnswer(Answer):
    """Answer of POST /evaluations/{submission_id}/verdict."""

    submission_id: int
    status: Status


class ComparisonFigures(Message):
    """What the referee found when it timed two submissions in turn, on the same inputs."""

    outcome: LeadOutcome
    later_tokens_per_sec: Finite | None = None
    """Over all of its trials, as in a verdict."""
    earlier_tokens_per_sec: Finite | None = None
    later_spread: Finite | None = None
    """Interquartile range of the trials over the measured time."""
    earlier_spread: Finite | None = None
    ratio: Finite | None = None
    """Of the weighted scores, later to earlier."""
    gpu: str
    """Device name, or `cpu`."""
    versions: dict[str, str]
    rules_version: int
    evidence: dict[str, Any]
    """Reason, and of both: seeds, lengths, trial times, per-stage seconds."""


class Comparison(ComparisonFigures):
    """Body of POST /comparisons: a re-run that settles whether a lead counts, signed by the validator."""

    later_submission_id: Annotated[int, Field(ge=1, lt=2**63)]
    earlier_submission_id: Annotated[int, Field(ge=1, lt=2**63)]
    validator_hotkey: HotkeyText
    signature: SignatureText


class ComparisonAnswer(Answer):
    """Answer of POST /comparisons."""

    later_submission_id: int
    earlier_submission_id: int
    outcome: LeadOutcome


class LogitCheck(Message):
    """Body of POST /record_verification: a logit check of one hotkey, signed by the validator."""

    miner_hotkey: HotkeyText
    validator_hotkey: HotkeyText
    outcome: LogitOutcome
    cosine_similarity: Finite | None = None
    max_abs_diff: Finite | None = None
    step: int | None = None
    tokens_per_sec: Finite | None = None
    reason: Annotated[str, StringConstraints(max_length=1000)] = ""
    checked_at: datetime
    signature: SignatureText


class LogitCheckAnswer(Answer):
    """Answer of POST /record_verification."""

    miner_hotkey: str
    outcome: LogitOutcome


class LogitVerification(Answer):
    """One entry of GET /verifications: where a hotkey's logit verification stands."""

    miner_hotkey: str
    outcome: LogitOutcome
    checked_at: datetime
    validators: int
    """How many validators have checked it lately."""


class StoredVerdict(Answer):
    """A verdict as GET /submissions/{id} shows it."""

    validator_hotkey: str
    lease_id: str | None = None
    """With it, and the submission's number, the signature can be checked."""
    status: Status
    fault: Fault
    measured_tokens_per_sec: float | None
    spread: float | None
    cosine_similarity: float | None
    max_abs_diff: float | None
    relative_error: float | None
    vram_mb: float | None
    gpu: str
    versions: dict[str, str]
    rules_version: int
    fingerprint: str | None = None
    evidence: dict[str, Any]
    signature: str
    created_at: datetime


class StoredComparison(Answer):
    """A re-run of two submissions as GET /submissions/{id} shows it, with either of them."""

    later_submission_id: int
    earlier_submission_id: int
    validator_hotkey: str
    outcome: LeadOutcome
    later_tokens_per_sec: float | None
    earlier_tokens_per_sec: float | None
    later_spread: float | None
    earlier_spread: float | None
    ratio: float | None
    gpu: str
    versions: dict[str, str]
    rules_version: int
    evidence: dict[str, Any]
    signature: str
    created_at: datetime


class SubmissionDetail(Answer):
    """Answer of GET /submissions/{id}."""

    submission_id: int
    miner_hotkey: str
    state: Literal["committed", "expired", "queued", "evaluating", "judged"]
    fork_url: str | None
    commit_hash: str | None
    target_sequence_length: int
    league: str
    claimed_tokens_per_sec: float | None
    commit_block: int | None
    reveal_block: int | None
    expires_block: int | None
    code_fixed_at: datetime | None
    created_at: datetime
    rank: int | None
    logit_outcome: LogitOutcome
    verdicts: list[StoredVerdict]
    comparisons: list[StoredComparison] = []
    """Re-runs that decided a lead of this submission, or one over it."""


# --- referee (JSON between processes) -----------------------------------------------------------------------


class GitSource(Message):
    """Where the referee takes a submission from: one commit of a repository."""

    kind: Literal["git"] = "git"
    fork_url: UrlText
    commit_hash: CommitHashText
    allow_file: bool = False
    """`file://` URLs: only on the local chain."""
    allowed_hosts: tuple[str, ...] = ("github.com",)


class DirectorySource(Message):
    """Where `verify` and the miner take a candidate from: a working tree (its fla/ops/quasar/*.py)."""

    kind: Literal["directory"] = "directory"
    path: str


class EvaluationJob(Message):
    """What a node asks the referee process to do (one JSON document on its standard input)."""

    source: Annotated[GitSource | DirectorySource, Field(discriminator="kind")]
    target_sequence_length: TargetLength
    sequence_length: int
    """T that is really run: the target, or the profile's cap."""
    claimed_tokens_per_sec: Throughput | None = None
    profile: Literal["cpu", "gpu"]
    device: str
    """`cpu` or `cuda:<n>`."""
    trials_min: int = 5
    trials_max: int = 24
    time_budget_s: float = 60.0
    """Budget of the timed trials."""
    deadline_s: float = 600.0
    """Wall-clock limit of the whole evaluation."""
    vram_limit_bytes: int | None = None
    """What a submission may hold of the GPU; None: half of it."""
    memory_limit_bytes: int = 8 * 2**30
    """What a submission may hold of the host's memory, where a cgroup can limit it."""
    work_dir: str
    """Private directory for git objects and Triton caches."""
    isolation: Isolation = Isolation.TO_SCORE
    known_fingerprints: dict[str, int] = Field(default_factory=dict)
    """Fingerprint of earlier submissions of other hotkeys -> submission id."""
    seeds: list[Annotated[int, Field(ge=0, lt=2**63)]] = Field(default_factory=list)
    """Of the inputs, in the order of their use, to replay an evaluation; random ones come after them."""


class EvaluationReport(Message):
    """What the referee answers (one JSON document on its standard output)."""

    figures: Figures
    sandbox_tier: str


class ComparisonJob(Message):
    """What a node asks the referee to time in turn, on one device and in one profile."""

    earlier: EvaluationJob
    later: EvaluationJob


class ComparisonReport(Message):
    """What the referee answers to it."""

    figures: ComparisonFigures
    sandbox_tier: str


# --- inference ----------------------------------------------------------------------------------------------


class InferenceRequest(Message):
    """Body of POST /inference on a miner."""

    prompt: Annotated[list[Annotated[int, Field(strict=True)]], Field(min_length=1)]
    gen_len: Annotated[int, Field(ge=1, strict=True)]
    logits_at_step: Annotated[int, Field(ge=1, strict=True)] | None = None
    """1-indexed: the distribution from which token k was taken."""
    logits_encoding: Literal["list", "base64"] = "list"
    nonce: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{32}$")] | None = None


class InferenceAnswer(Answer):
    """Answer of POST /inference."""

    tokens: list[int]
    captured_logits: list[float] | str | None
    """Floats, or base64 of little-endian float32 when asked so."""
    elapsed_sec: float
    nonce: str | None = None
    signature: str | None = None
    """The miner hotkey's signature over `signing.inference_text(...)`."""


class ModelInfo(Answer):
    """Answer of GET /model_info on a miner."""

    model_name: str
    vocab_size: int
    dtype: str
    device: str
    num_layers: int
    hidden_size: int
    context_length: int

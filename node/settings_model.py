"""Every setting of the node with its default; names follow config.toml, one class per table."""

import re
from pathlib import Path
from typing import Annotated, Final, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, SecretStr

from protocol import rules

MAX_PORT: Final = 65535
Port = Annotated[int, Field(ge=0, le=MAX_PORT)]
"""0 lets the system choose."""
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Fraction = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]


class Section(BaseModel):
    """Base of every table: unknown keys are errors, values do not change after start."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)


class NodeSection(Section):
    """What every role shares."""

    data_dir: Path = Path("data")
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    log_format: Literal["auto", "console", "json"] = "auto"
    device: str = Field(default="cuda", pattern=r"^(auto|cpu|cuda(:[0-9]{1,2})?)$")
    metrics_host: str = "127.0.0.1"
    metrics_port: Port = 9464
    drain_s: Positive = 10.0
    """How long running work may take to finish after SIGTERM."""
    watchdog_s: Positive = 150.0
    """Without progress of the event loop or the block watcher for so long, the process ends with code 70."""
    journal_key: SecretStr | None = None
    """Encrypts the journal's secrets: 64 hex digits. Default: the file `journal.key` in data_dir."""


class ChainSection(Section):
    """The Bittensor network, or the embedded local chain."""

    network: str = "test"
    """`finney`, `test`, a ws:// or wss:// address, or `local` (then local_state is needed)."""
    fallback_endpoints: tuple[str, ...] = ()
    netuid: Annotated[int, Field(ge=0, le=65535)] = 24
    local_state: Path | None = None
    """SQLite file of the embedded local chain."""
    local_endpoint: str | None = None
    """Node of a local chain on this machine, instead of the embedded one (`network` is `local`)."""
    call_timeout_s: Positive = 30.0
    unreachable_after_s: Positive = 300.0
    """A chain silent for this long ends the process with exit code 69."""


class WalletSection(Section):
    """Bittensor wallet: `name` wins over the per-role names."""

    path: Path = Path("~/.bittensor/wallets")
    name: str | None = None
    miner_name: str = "quasar_miner"
    validator_name: str = "quasar_validator"
    api_name: str = "quasar_api"
    hotkey: str = "default"
    password: SecretStr | None = None


class ApiSection(Section):
    """The subnet API: `url` is where clients call it, the rest belongs to the server."""

    url: str = "http://localhost:8000"
    host: str = "127.0.0.1"
    port: Port = 8000
    database_url: SecretStr | None = None
    """Default: SQLite in data_dir."""
    legacy_auth: bool = False
    trusted_proxies: tuple[str, ...] = ()
    allowed_git_hosts: tuple[str, ...] = ("github.com",)
    max_body_bytes: Annotated[int, Field(ge=1024)] = 65_536
    round_s: Positive = float(rules.ROUND_SECONDS)
    blocks_until_reveal: Annotated[int, Field(ge=1)] = rules.BLOCKS_UNTIL_REVEAL
    reveal_window_blocks: Annotated[int, Field(ge=1)] = rules.REVEAL_WINDOW_BLOCKS
    lease_s: Positive = 120.0
    heartbeat_s: Positive = 20.0
    infrastructure_retry_s: Positive = 600.0
    """A validator gets a submission again so long after its `infrastructure` verdict; the next time it takes
    twelve times as long."""
    min_validator_stake_tao: Annotated[float, Field(ge=0)] = 1000.0
    writes_per_minute_per_hotkey: Annotated[int, Field(ge=1)] = 30
    writes_per_minute_per_ip: Annotated[int, Field(ge=1)] = 120
    metagraph_max_age_s: Positive = 60.0


class MinerSection(Section):
    """The optimisation loop and its submissions."""

    target_sequence_length: Annotated[int, Field(ge=1, le=rules.MAX_TARGET_SEQUENCE_LENGTH)] = 100_000
    agent_iterations: Annotated[int, Field(ge=0)] = 100
    optimization_interval_s: Annotated[float, Field(ge=0)] = 300.0
    choose_league: bool = False
    """Measure every league and compete where the weighted score is highest."""
    proposer: Literal["tuner", "shipped", "files", "agent"] = "tuner"
    tuner_budget_s: Positive = 60.0
    """How long the `tuner` searches in each round."""
    variants: tuple[str, ...] = ("chunk",)
    """Shipped kernels that the `shipped` proposer walks through."""
    kernel_dir: Path | None = None
    """Folder with the five files, for the `files` proposer."""
    submission: Literal["commit-reveal", "direct"] = "commit-reveal"
    anchor_commitment: bool = False
    """Puts the commitment's hash on chain first, so that its block counts and nobody has to trust the API."""
    submit_margin: Fraction = 0.02
    """A candidate must beat the last submission by this fraction."""
    claim_quantile: Fraction = 0.1
    """The claim rests on the trial of the own measurement that this fraction stayed below."""
    claim_fraction: Annotated[float, Field(gt=0, le=1)] = 0.95
    """Share of that trial's throughput that is claimed."""
    verify_before_submit: bool = True
    """False submits without an own verdict and claims `unverified_claim`: a risk of strikes."""
    unverified_claim_tokens_per_sec: Positive = 1.0
    github_token: SecretStr | None = None
    github_username: str | None = None
    github_api: str = "https://api.github.com"
    target_repo: str = "https://github.com/troy12x/flash-linear-attention"
    fork_remote: str | None = None
    """file:// address of a bare repository; only on the local chain, replaces GitHub."""
    branch: str = "quasar"
    author_name: str = "quasar-node"
    author_email: str = "quasar-node@localhost"
    poll_s: Positive = 10.0
    """How often verdicts are asked for."""
    serve_inference: bool = True
    share_gpu: bool = False
    """True lets miners that all say so run on one GPU: their measurements take turns."""


class AgentSection(Section):
    """The language model of the `agent` proposer."""

    base_url: str | None = None
    """OpenAI-compatible endpoint, up to and without /chat/completions; None: transformers on this machine."""
    model: str = ""
    api_key: SecretStr | None = None
    timeout_s: Positive = 600.0
    max_tokens: Annotated[int, Field(ge=1)] = 32_768
    temperature: Annotated[float, Field(ge=0, le=2)] = 0.7


class InferenceSection(Section):
    """The miner's inference server."""

    host: str = "0.0.0.0"  # noqa: S104 - validators call it from outside
    port: Port = 8001
    reference_model: str = "Qwen/Qwen2.5-0.5B-Instruct"
    trust_remote_code: bool = False
    require_auth: bool | None = None
    """Default: true except on the local chain."""
    cuda_graphs: bool = True
    """Off: the plain loop, which starts sooner and answers a twentieth as fast."""
    queue_size: Annotated[int, Field(ge=1)] = 32
    max_gen_len: Annotated[int, Field(ge=1)] = 1024
    request_deadline_s: Positive = 60.0
    max_body_bytes: Annotated[int, Field(ge=1024)] = 1_048_576
    external_ip: str | None = None
    external_port: Port | None = None
    """What the axon advertises when it differs from what is bound."""


class ValidatorSection(Section):
    """Evaluation, logit checks and weights."""

    poll_s: Positive = 10.0
    logit_interval_s: Positive = 3600.0
    """Mean time between two challenges of one miner; real times are random."""
    inference_timeout_s: Positive = 60.0
    weights_interval_blocks: Annotated[int, Field(ge=1)] = 100
    """Weights are refreshed at least this often (the chain's rate limit permitting)."""
    infrastructure_pause_s: Positive = 60.0
    """The first pause, after two `infrastructure` verdicts in a row; it doubles up to 30 minutes."""
    unsafe_no_sandbox: bool = False
    """Runs hostile code without isolation; verdicts count on the local chain only."""


class EvaluationSection(Section):
    """How the referee measures, for validator, miner and `verify` alike."""

    profile: Literal["auto", "cpu", "gpu"] = "auto"
    """`cpu`: Triton interpreter, tiny shapes; scores only on the local chain."""
    trials_min: Annotated[int, Field(ge=1)] = 5
    trials_max: Annotated[int, Field(ge=1)] = 24
    time_budget_s: Positive = 60.0
    deadline_s: Positive = 600.0
    max_sequence_length: Annotated[int, Field(ge=64)] | None = None
    """Caps the length that is really run (local chain and tests)."""
    devices: tuple[str, ...] = ()
    """GPUs that a validator judges on, each with a referee of its own; default: `[node] device` alone."""
    vram_limit_mb: Annotated[int, Field(ge=1)] | None = None
    """What a submission may hold of the GPU's memory; default: half of it."""
    memory_limit_mb: Annotated[int, Field(ge=1024)] | None = None
    """What a submission may hold of the host's memory, where it has a cgroup of its own; default: half of it,
    shared out among `devices`."""


def _checked_address(address: str) -> str:
    pair = re.fullmatch(r"[^:/\s]+:([0-9]{1,5})", address)
    if address != "auto" and (pair is None or not 1 <= int(pair[1]) <= MAX_PORT):
        raise ValueError(f"auto or host:port is expected, with a port from 1 to {MAX_PORT}")
    return address


class ExecutorSection(Section):
    """Where a validator's referees run."""

    backend: Literal["local", "ray"] = "local"
    """`ray`: on hosts of a Ray cluster that this host is part of; needs the extra `ray`."""
    address: Annotated[str, AfterValidator(_checked_address)] = "auto"
    """Of the cluster: `auto` (the one that this host has joined) or host:port."""
    evaluations: Annotated[int, Field(ge=1)] = 1
    """At once, each on a GPU of its own."""
    device: str = Field(default="cuda:0", pattern=r"^(cpu|cuda:0)$")
    """`cpu`: for the local chain. Of a host's GPUs an evaluation sees its own alone."""


class Settings(Section):
    """All tables together."""

    node: NodeSection = NodeSection()
    chain: ChainSection = ChainSection()
    wallet: WalletSection = WalletSection()
    api: ApiSection = ApiSection()
    miner: MinerSection = MinerSection()
    agent: AgentSection = AgentSection()
    inference: InferenceSection = InferenceSection()
    validator: ValidatorSection = ValidatorSection()
    evaluation: EvaluationSection = EvaluationSection()
    executor: ExecutorSection = ExecutorSection()

    @property
    def is_local_chain(self) -> bool:
        """True on the embedded local chain, where file:// remotes and unsandboxed verdicts are allowed."""
        return self.chain.network == "local"

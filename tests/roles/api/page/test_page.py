"""The pages as HTML over HTTP: what they say, what they hide, and what a hostile string does to them."""

from datetime import UTC, datetime
from html.parser import HTMLParser
from typing import Any

import pytest
from sqlalchemy import update

from node.chain.local import Registration
from protocol.signing import logit_check_text, sign_text
from protocol.types import Coldkey, Hotkey, Uid
from protocol.verdicts import Fault, LogitOutcome, Status
from roles.api.chain_view import ChainView
from roles.api.database import Database, DatabaseUnavailable
from roles.api.page import reader
from roles.api.tables import rounds
from tests.roles.api.harness import Client, Code, Subnet, key, logit_message, running, until, url_of
from tests.roles.api.page.populated import ENTRIES, HOSTILE, OTHERS, committed_code, page_settings

VOID = ("meta", "link", "input", "br")


class Document(HTMLParser):
    """Collects the words of a page, its links and its tags, and checks that the tags nest."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self._open: list[str] = []
        self._parts: list[str] = []
        self.links: set[str] = set()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)
        self.close()
        assert self._open == []

    @property
    def words(self) -> str:
        """All text with single spaces."""
        return " ".join("".join(self._parts).split())

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag == "a":
            self.links.add(dict(attrs)["href"])
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: Any) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        self._parts.append(data + " ")


async def page(api: Client, path: str, status: int = 200) -> Document:
    """A page of the site, with what every answer must carry."""
    reply = await api.get(path)
    assert reply.status == status, reply
    assert reply.headers["Content-Type"] == "text/html; charset=utf-8"
    policy = reply.headers["Content-Security-Policy"]
    assert policy.startswith("default-src 'none'; ")
    assert "unsafe" not in policy
    assert reply.headers["X-Content-Type-Options"] == "nosniff"
    document = Document(reply.body)
    assert all("style" not in attributes for _, attributes in document.tags)
    assert not any(name.startswith("on") for _, attributes in document.tags for name in attributes)
    return document


async def words_soon(api: Client, path: str, *expected: str) -> Document:
    """The page once it says what is expected: it may be some seconds behind."""

    async def look() -> Document | None:
        document = await page(api, path)
        return document if all(text in document.words for text in expected) else None

    found: Document = await until(look, timeout_s=120.0)
    return found


async def test_front_page_shows_the_whole_competition(site: Client) -> None:
    front = await page(site, "/")
    for text in (
        "Round 1",
        "about 48 blocks",
        "Submissions this round 16",
        "Wait for a verdict 2",
        "Ranked 10",
        "431,200,000",
        "1,293,600,000",
        "0.999992",
        "60 %",
        "800k × 2.25",
        "Verdict wrong output Rank unranked",
        "Verdict evaluating",
        "Verdict queued",
        "Commit none Reveal sent directly",
        "Reveal in 37 blocks",
        "Reveal due",
    ):
        assert text in front.words
    assert "ends in 1 d 23 h" in front.words or "ends in 2 d 0 h" in front.words
    order = [front.words.index(f"{entry.tokens_per_sec:,.0f}") for entry in ENTRIES]
    assert order == sorted(order)
    assert f"/miners/{key('orion').ss58_address}" in front.links
    assert "/submissions/1/page" in front.links


async def test_plot_has_a_point_for_every_place(site: Client) -> None:
    front = await page(site, "/")
    circles = [attributes for tag, attributes in front.tags if tag == "circle" and "cx" in attributes]
    points = [attributes for attributes in circles if attributes["r"] in ("3.5", "4.5")]
    assert len(points) == len(ENTRIES)
    assert [attributes["r"] for attributes in points].count("4.5") == 4
    assert "Place 1: 431,200,000 tokens/s at 1,000,000" in front.words


async def test_miners_page_tells_history_and_the_reason_for_the_rank(site: Client) -> None:
    hotkey = key("lyra").ss58_address
    miner = await words_soon(site, f"/miners/{hotkey}", "UID 2")
    for text in (
        hotkey,
        "Place 2: 392,750,000 tokens/s times 3 for the 1M league make a weighted score of 1,178,250,000; "
        "passing place 1 takes more than 1,319,472,000, here 439,824,000 tokens/s; it earns 25 % of the "
        "reward.",
        "Logit verification passed",
        "Verdict 392,750,000",
    ):
        assert text in miner.words


async def test_tie_is_explained(site: Client) -> None:
    # A few per mille above lyra would pass it by score, and comes later.
    miner = await words_soon(site, f"/miners/{key('vela').ss58_address}", "Place 3")
    assert "passing place 2 takes more than 1,201,815,000" in miner.words


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("corvus", "its output differs from the float32 reference by more than the rules allow"),
        ("musca", "it was measured below 90 % of what its miner claimed"),
        (
            OTHERS[0],
            "the kernel passed, but its miner's inference server has not passed a logit check lately",
        ),
        (OTHERS[1], "its code is revealed and waits for a validator"),
        (OTHERS[2], "a validator is judging it right now"),
        (OTHERS[3], "its code is not revealed yet and may be from block 1,538, in 37 blocks"),
        ("stranger", "this hotkey has submitted nothing"),
    ],
)
async def test_missing_rank_has_one_clear_reason(site: Client, name: str, reason: str) -> None:
    miner = await page(site, f"/miners/{key(name).ss58_address}")
    assert "Not ranked: " in miner.words
    assert f"{reason}." in miner.words


async def test_submissions_page_shows_verdict_and_evidence(site: Client) -> None:
    submission = await page(site, "/submissions/1/page")
    for text in (
        "Submission 1",
        "Place 1: 431,200,000",
        "Claimed 409,640,000 tokens/s",
        "block 101 to 400",
        "NVIDIA H200",
        "0.999992",
        "4,175 MB",
        "torch 2.13.0",
        '"reason": "every output agrees with the reference"',
    ):
        assert text in submission.words
    assert any(link.startswith("https://github.com/miner-of-kernels/fork/tree/") for link in submission.links)


async def test_code_is_hidden_until_a_verdict(site: Client) -> None:
    front = await page(site, "/")
    [waiting] = [row for row in (await site.get("/submissions?limit=500")).body if row["state"] == "queued"]
    shown = await page(site, f"/submissions/{waiting['submission_id']}/page")
    assert "Hidden until a validator has judged it." in shown.words
    code = Code(f"{key(OTHERS[1]).ss58_address}-direct")
    for document in (front, shown, await page(site, f"/miners/{waiting['miner_hotkey']}")):
        assert "miner-of-kernels" not in document.words
        assert code.commit_hash not in document.words
        assert not any("github.com" in link for link in document.links)


async def test_infrastructure_fault_that_is_tried_again_hides_its_evidence(
    site: Client, populated: Subnet
) -> None:
    lease = await site.lease(populated.validator)
    assert lease is not None
    await site.judge(
        populated.validator,
        lease,
        status=Status.INFRASTRUCTURE,
        fault=Fault.INFRASTRUCTURE,
        measured_tokens_per_sec=None,
        evidence={"log_tail": f"cannot clone {lease.fork_url}"},
    )
    shown = await words_soon(site, f"/submissions/{lease.submission_id}/page", "infrastructure")
    assert "cannot clone" not in shown.words
    assert lease.fork_url not in shown.words


async def test_hostile_strings_stay_text(site: Client, populated: Subnet) -> None:
    lease = await site.lease(populated.validator)
    assert lease is not None
    reply = await site.judge(
        populated.validator,
        lease,
        gpu=HOSTILE,
        versions={HOSTILE: HOSTILE},
        evidence={HOSTILE: [HOSTILE]},
    )
    assert reply.status == 200
    check = logit_message(populated.validator, key("corvus"), LogitOutcome.FAILED)
    hostile = check.model_copy(update={"reason": HOSTILE})
    signature = sign_text(populated.validator, logit_check_text(hostile))
    reply = await site.post(
        "/record_verification", hostile.model_copy(update={"signature": signature}), populated.validator
    )
    assert reply.status == 200
    for path in (f"/submissions/{lease.submission_id}/page", f"/miners/{key('corvus').ss58_address}"):
        document = await words_soon(site, path, "alert(1)")
        scripts = [attributes for tag, attributes in document.tags if tag == "script"]
        assert all((attributes["src"] or "").startswith("/static/page.js") for attributes in scripts)
    # Signs that turn the direction of a line do not even reach the page inside evidence.
    raw = (await site.get(f"/submissions/{lease.submission_id}/page")).body
    evidence = raw[raw.index("<pre") : raw.index("</pre>")]
    assert "\u202e" not in evidence
    assert "\\u202e" in evidence


async def test_search_leads_to_the_miner(site: Client) -> None:
    hotkey = key("orion").ss58_address
    async with site.session.get(f"{site.url}/miners?hotkey=%20{hotkey}", allow_redirects=False) as answer:
        assert answer.status == 303
        assert answer.headers["Location"] == f"/miners/{hotkey}"


@pytest.mark.parametrize(
    ("path", "sentence"),
    [
        ("/miners/%3Cscript%3E", "'<script>' is no hotkey"),
        ("/miners?hotkey=0OIl", "'0OIl' is no hotkey"),
        ("/miners", "'' is no hotkey"),
        ("/submissions/999/page", "There is no submission 999."),
        ("/submissions/99999999999999999999999/page", "There is no submission 9999999999999999999"),
    ],
)
async def test_unknown_things_are_a_page_with_one_sentence(site: Client, path: str, sentence: str) -> None:
    assert sentence in (await page(site, path, status=404)).words


async def test_static_files_are_kept_for_ever_at_their_own_address(site: Client) -> None:
    front = await page(site, "/")
    addresses = [
        value
        for _, attributes in front.tags
        for name, value in attributes.items()
        if name in ("src", "href") and value is not None and value.startswith("/static/")
    ]
    assert len(addresses) == 3
    for address in addresses:
        kept = await site.get(address)
        assert kept.status == 200
        assert kept.headers["Cache-Control"] == "public, max-age=31536000, immutable"
        assert (await site.get(address.partition("?")[0])).headers["Cache-Control"] == "no-cache"
    assert (await site.get("/static/..%2Fhandlers.py")).status == 404


async def test_empty_subnet_is_honest(api: Client, subnet: Subnet) -> None:
    front = await page(api, "/")
    for text in (
        "Round 1",
        "Nobody is ranked yet.",
        "The plot begins with the first ranked submission.",
        "Nobody has submitted anything yet.",
        "No commitment waits for its reveal.",
        "no winner yet",
    ):
        assert text in front.words
    miner = await page(api, f"/miners/{subnet.miner.ss58_address}")
    for text in (
        "Not ranked: this hotkey has submitted nothing.",
        "No validator has checked this miner's logits yet.",
        "It had a place in none of the last rounds.",
    ):
        assert text in miner.words


async def test_expired_commitment_is_told(site: Client, populated: Subnet) -> None:
    number = await committed_code(site, key("draco"), "forgotten")
    populated.chain.advance(400)
    shown = await words_soon(site, f"/submissions/{number}/page", "expired")
    assert "Not ranked: its commitment was not revealed before block" in shown.words
    # The miner's better submission is what its own page speaks of.
    assert "Place 4" in (await page(site, f"/miners/{key('draco').ss58_address}")).words


async def test_long_history_shows_the_newest(site: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reader, "SHOWN_HISTORY", 1)
    miner = await page(site, f"/miners/{key(OTHERS[3]).ss58_address}")
    assert "Shown are the newest 1." in miner.words
    assert "/submissions/16/page" in miner.links
    assert "/submissions/15/page" not in miner.links


async def test_unregistered_miner_is_told_why(populated: Subnet) -> None:
    gone, newcomer = key("orion").ss58_address, key("newcomer").ss58_address
    populated.chain.register(
        Registration(Hotkey(newcomer), Coldkey(key("cold-n").ss58_address), 0.0, False), replace_uid=Uid(1)
    )
    sentence = "its hotkey is not registered on subnet 24"
    # Started afterwards: without blocks a metagraph that was read before would be kept.
    async with running(page_settings(populated)) as api:
        miner = await words_soon(api, f"/miners/{gone}", sentence)
        assert "Registered no" in miner.words
        await words_soon(api, "/", "Ranked 9")


async def test_closed_rounds_stay_in_a_miners_history(populated: Subnet) -> None:
    settings = page_settings(populated)
    database = Database(url_of(settings))
    over = update(rounds).values(end_time=datetime.now(UTC))
    assert await database.write(lambda connection: connection.execute(over).rowcount) == 1
    await database.close()
    async with running(settings) as api:
        front = await words_soon(api, "/", "Round 2", "To beat submission 1")
        assert "/submissions/1/page" in front.links
        miner = await page(api, f"/miners/{key('orion').ss58_address}")
        assert "1 431,200,000 1,293,600,000 60 % #1" in miner.words
        assert "It had a place in none of the last rounds." not in miner.words


async def test_silent_chain_is_said_and_the_page_stays(site: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    async def is_quiet() -> bool:
        return "Heights are the last ones known" not in (await page(site, "/")).words

    await until(is_quiet)
    monkeypatch.setattr(ChainView, "unreadiness", lambda *_: "the chain has not answered for 75 s")
    sentence = "Heights are the last ones known: the chain has not answered for 75 s."
    for path in ("/", f"/miners/{key('orion').ss58_address}", "/submissions/1/page"):
        await words_soon(site, path, sentence)


async def test_database_that_is_away_is_a_page_that_says_when_to_come_back(
    site: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def away(*_: object) -> None:
        raise DatabaseUnavailable("the database cannot be reached: try again")

    monkeypatch.setattr(Database, "read", away)
    reply = await site.get("/submissions/1/page")
    assert reply.status == 503
    assert reply.headers["Retry-After"] == "5"
    assert "The database cannot be reached: try again." in Document(reply.body).words

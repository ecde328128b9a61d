"""Authentication of requests: btauth/1 and the legacy headers."""

import time

import pytest
from bittensor.sp_core import Keypair
from hypothesis import given
from hypothesis import strategies as st

from protocol.auth import NONCE_LIFETIME_S, sign_request, verify_legacy, verify_request
from protocol.errors import SignatureInvalid
from protocol.signing import sign_text

ALICE = Keypair.create_from_uri("//Alice")
API = Keypair.create_from_uri("//Bob")
NOW_NS = 1_800_000_000_000_000_000
SECOND_NS = 1_000_000_000


class BareSigner:
    """A signer with nothing beyond what the protocol asks for."""

    ss58_address: str = ALICE.ss58_address

    def sign(self, data: bytes, /) -> bytes:
        return bytes(ALICE.sign(data))


def headers(
    body: bytes = b"{}", path: str = "/evaluations/lease?x=1", nonce_ns: int = NOW_NS
) -> dict[str, str]:
    return sign_request(
        BareSigner(), method="POST", path=path, body=body, receiver=API.ss58_address, nonce_ns=nonce_ns
    )


def verify(
    given_headers: dict[str, str], body: bytes = b"{}", now_ns: int = NOW_NS, **other: str
) -> tuple[str, int]:
    caller = verify_request(
        given_headers,
        body,
        method=other.get("method", "POST"),
        path=other.get("path", "/evaluations/lease?x=1"),
        self_hotkey=other.get("self_hotkey", API.ss58_address),
        now_ns=now_ns,
    )
    return caller.hotkey, caller.nonce_ns


def test_a_signed_request_names_its_caller_and_nonce() -> None:
    assert verify(headers()) == (ALICE.ss58_address, NOW_NS)


def test_the_system_clock_is_the_default() -> None:
    signed = sign_request(ALICE, method="GET", path="/x", body=b"", receiver=API.ss58_address)
    caller = verify_request(signed, b"", method="GET", path="/x", self_hotkey=API.ss58_address)
    assert abs(caller.nonce_ns - time.time_ns()) < 10 * SECOND_NS


def test_the_callers_own_store_decides_about_replays() -> None:
    assert verify(headers()) == verify(headers()) == (ALICE.ss58_address, NOW_NS)


def test_header_names_have_no_case() -> None:
    assert verify({name.lower(): value for name, value in headers().items()})[0] == ALICE.ss58_address


def test_whatever_is_changed_is_noticed() -> None:
    for change in ({"method": "PUT"}, {"path": "/evaluations/lease"}, {"self_hotkey": ALICE.ss58_address}):
        with pytest.raises(SignatureInvalid):
            verify(headers(), **change)
    with pytest.raises(SignatureInvalid):
        verify(headers(), body=b"{ }")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("X-Bittensor-Version", "9"),
        ("X-Bittensor-Hotkey", API.ss58_address),
        ("X-Bittensor-Hotkey", "nonsense"),
        ("X-Bittensor-Hotkey", "\udcff"),
        ("X-Bittensor-Nonce", "soon"),
        ("X-Bittensor-Nonce", "9" * 5000),
        ("X-Bittensor-Nonce", str(NOW_NS + 1)),
        ("X-Bittensor-Signature", "0x00"),
        ("X-Bittensor-Signature", "zz"),
        ("X-Bittensor-Crypto", "rot13"),
        ("X-Bittensor-Receiver", ALICE.ss58_address),
    ],
)
def test_odd_headers_are_refused(name: str, value: str) -> None:
    with pytest.raises(SignatureInvalid, match="request signature refused"):
        verify({**headers(), name: value})


@pytest.mark.parametrize("name", ["Version", "Hotkey", "Nonce", "Signature", "Receiver"])
def test_every_header_is_needed(name: str) -> None:
    rest = {key: value for key, value in headers().items() if key != f"X-Bittensor-{name}"}
    with pytest.raises(SignatureInvalid):
        verify(rest)


@pytest.mark.parametrize(
    ("age_s", "fresh"), [(0.0, True), (9.9, True), (10.1, False), (-1.9, True), (-2.1, False)]
)
def test_a_request_is_fresh_for_ten_seconds(age_s: float, fresh: bool) -> None:
    now_ns = NOW_NS + int(age_s * SECOND_NS)
    if fresh:
        assert verify(headers(), now_ns=now_ns)[1] == NOW_NS
    else:
        with pytest.raises(SignatureInvalid):
            verify(headers(), now_ns=now_ns)


def test_a_nonce_may_be_forgotten_after_its_lifetime() -> None:
    # Accepted first at the earliest possible moment, it is stale when it may be forgotten.
    first_ns = NOW_NS - 2 * SECOND_NS
    assert verify(headers(), now_ns=first_ns)
    with pytest.raises(SignatureInvalid):
        verify(headers(), now_ns=first_ns + int(NONCE_LIFETIME_S * SECOND_NS) + 1_000)


@given(st.binary(max_size=200), st.text(alphabet="abc/?=&%", max_size=20))
def test_any_body_and_path_round_trip(body: bytes, path: str) -> None:
    assert verify(headers(body=body, path=path), body=body, path=path)[0] == ALICE.ss58_address


def test_legacy_headers() -> None:
    good = {"hotkey": ALICE.ss58_address, "SIGNATURE": sign_text(ALICE, ALICE.ss58_address)}
    assert verify_legacy(good) == ALICE.ss58_address
    for bad in (
        {},
        {"Hotkey": ALICE.ss58_address},
        {**good, "hotkey": API.ss58_address},
        {**good, "SIGNATURE": "00"},
    ):
        with pytest.raises(SignatureInvalid):
            verify_legacy(bad)

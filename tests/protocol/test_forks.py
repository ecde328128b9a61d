"""Fork URLs and commit hashes."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.errors import InvalidForkUrl
from protocol.forks import TARGET_FILES, check_commit_hash, check_fork_url


@pytest.mark.parametrize(
    ("url", "normal"),
    [
        ("https://github.com/you/flash-linear-attention", "https://github.com/you/flash-linear-attention"),
        ("https://github.com/you/fork.git", "https://github.com/you/fork"),
        ("https://GitHub.com/You/My_Fork.v2", "https://github.com/You/My_Fork.v2"),
        ("https://github.com/a-b-/.github", "https://github.com/a-b-/.github"),
        ("https://github.com/name_corp/x", "https://github.com/name_corp/x"),
    ],
)
def test_allowed_urls_get_one_form(url: str, normal: str) -> None:
    assert check_fork_url(url) == normal
    assert check_fork_url(normal) == normal


@pytest.mark.parametrize(
    "url",
    [
        "",
        "github.com/a/b",
        "http://github.com/a/b",
        "HTTPS://github.com/a/b",
        "git://github.com/a/b",
        "ssh://git@github.com/a/b",
        "git@github.com:a/b",
        "ext::sh -c id",
        "ext::sh%20-c%20id",
        "--upload-pack=touch",
        "https://github.com",
        "https://github.com/",
        "https://github.com/a",
        "https://github.com/a/",
        "https://github.com/a/b/",
        "https://github.com/a/b/c",
        "https://github.com//b",
        "https://github.com/a/.git",
        "https://github.com/a/..",
        "https://github.com/a/.",
        "https://github.com/a/b..c",
        "https://github.com/../b",
        "https://github.com/-a/b",
        "https://github.com/a/-b",
        "https://github.com/a/b?x=1",
        "https://github.com/a/b#x",
        "https://github.com/a/%2e%2e",
        "https://github.com:443/a/b",
        "https://user:secret@github.com/a/b",
        "https://github.com@evil.example/a/b",
        "https://evil.example/a/b",
        "https://github.com.evil.example/a/b",
        "https://github.com\\@evil.example/a/b",
        "https://github.com/a/b\n",
        "https://github.com/a/b --upload-pack=x",
        "https://github.com/a/ü",
        "https://gıthub.com/a/b",
        "https://github.com/a/" + "b" * 101,
        "https://github.com/a/" + "b" * 600,
        "file:///srv/fork",
        "file://github.com/a/b",
    ],
)
def test_everything_else_is_refused(url: str) -> None:
    with pytest.raises(InvalidForkUrl, match=r"^fork_url ") as caught:
        check_fork_url(url)
    assert len(str(caught.value)) < 400


def test_credentials_do_not_reach_the_message() -> None:
    with pytest.raises(InvalidForkUrl) as caught:
        check_fork_url("https://user:hunter2@github.com/a/b")
    assert "hunter2" not in str(caught.value)
    assert "credentials" in str(caught.value)


def test_other_hosts_must_be_named() -> None:
    assert (
        check_fork_url("https://git.example/a/b", allowed_hosts=["Git.Example"]) == "https://git.example/a/b"
    )
    with pytest.raises(InvalidForkUrl, match=re.escape("use one of: git.example")):
        check_fork_url("https://github.com/a/b", allowed_hosts=["git.example"])


def test_files_are_allowed_on_the_local_chain_only() -> None:
    url = "file:///tmp/devnet-1/remotes/miner_1.git"
    assert check_fork_url(url, allow_file=True) == url
    with pytest.raises(InvalidForkUrl, match="local chain only"):
        check_fork_url(url)


@pytest.mark.parametrize(
    "url",
    [
        "file://relative/path",
        "file://",
        "file:///",
        "file:///a/../b",
        "file:///a/./b",
        "file:///a//b",
        "file:///a/-x",
        "file:///a/b/",
        "file:///a/b?x",
        "file:///a/b;id",
        "file:///a/$(id)",
        "file://host/a/b",
    ],
)
def test_odd_file_urls_are_refused(url: str) -> None:
    with pytest.raises(InvalidForkUrl, match=r"^fork_url 'file:"):
        check_fork_url(url, allow_file=True)


@given(st.text(max_size=80))
def test_no_text_gets_past_the_form(text: str) -> None:
    for url in (text, "https://github.com/" + text, "https://" + text + "/a/b"):
        try:
            normal = check_fork_url(url)
        except InvalidForkUrl:
            continue
        assert re.fullmatch(
            r"https://github\.com/[A-Za-z0-9_][A-Za-z0-9_-]*/[A-Za-z0-9_.][A-Za-z0-9_.-]*", normal
        )
        assert ".." not in normal


def test_a_commit_hash_is_forty_lower_case_digits() -> None:
    assert check_commit_hash("0123456789abcdef" * 2 + "01234567") == "0123456789abcdef" * 2 + "01234567"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "abc123",
        "A" * 40,
        "g" * 40,
        "a" * 39,
        "a" * 41,
        "a" * 40 + "\n",
        "HEAD",
        "--x",
        "٣" * 40,
        "a" * 9000,
    ],
)
def test_anything_else_is_no_commit_hash(text: str) -> None:
    with pytest.raises(InvalidForkUrl, match="commit_hash") as caught:
        check_commit_hash(text)
    assert len(str(caught.value)) < 400


def test_the_target_files_stand_by_priority() -> None:
    assert TARGET_FILES[0] == "chunk.py"
    assert len(set(TARGET_FILES)) == 5

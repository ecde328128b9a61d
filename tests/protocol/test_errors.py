"""The error tree."""

import inspect

import pytest

from protocol import errors
from protocol.errors import ApiRefused, ConfigError, QuasarError


def test_every_error_is_documented_and_carries_an_exit_code() -> None:
    classes = [one for _, one in inspect.getmembers(errors, inspect.isclass) if issubclass(one, QuasarError)]
    assert len(classes) > 20
    for one in classes:
        assert one.__doc__
        assert one.exit_code in {2, 69, 70, 75, 77, 78}


def test_a_refusal_carries_its_status() -> None:
    refused = ApiRefused(429, "slow down", retry_after_s=2.5)
    assert (str(refused), refused.status, refused.retry_after_s) == ("slow down", 429, 2.5)
    assert refused.exit_code == 75


def test_wrong_wallets_are_wrong_configuration() -> None:
    with pytest.raises(ConfigError):
        raise errors.WalletError("wallet 'x' does not exist")

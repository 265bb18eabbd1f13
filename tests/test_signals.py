"""Signals that end a command."""

import signal

import pytest

from wavalign_fast.cli import main
from wavalign_fast.signals import Interrupted, signals_as_exceptions

TERMINATING = [signal.SIGTERM, signal.SIGHUP]


@pytest.mark.parametrize("number", TERMINATING)
def test_a_signal_unwinds_what_is_half_done(number):
    cleaned = []
    with pytest.raises(Interrupted) as stop, signals_as_exceptions():
        try:
            signal.raise_signal(number)
        finally:
            cleaned.append(True)
    assert stop.value.number == number and cleaned
    assert not isinstance(stop.value, Exception)  # no `except Exception` may swallow it
    assert signal.getsignal(number) == signal.SIG_DFL


@pytest.mark.parametrize("number", TERMINATING)
def test_what_comes_twice_does_not_cut_the_clean_up_off(number):
    cleaned = []
    with pytest.raises(Interrupted), signals_as_exceptions():
        try:
            signal.raise_signal(number)
        finally:
            for again in TERMINATING:
                signal.raise_signal(again)
            cleaned.append(True)
    assert cleaned
    assert {signal.getsignal(again) for again in TERMINATING} == {signal.SIG_DFL}


@pytest.mark.parametrize("number", TERMINATING)
@pytest.mark.parametrize("handler", [signal.SIG_IGN, lambda *_: None], ids=["ignored", "own"])
def test_signals_that_somebody_has_seen_to_are_left_alone(number, handler):
    before = signal.signal(number, handler)
    try:
        with signals_as_exceptions():
            signal.raise_signal(number)
            assert signal.getsignal(number) == handler
    finally:
        signal.signal(number, before)


@pytest.mark.parametrize("number", [signal.SIGINT, *TERMINATING])
def test_a_command_that_is_interrupted_says_so_in_one_line(number, capsys, monkeypatch):
    from wavalign_fast import doctor

    monkeypatch.setattr(doctor, "main", lambda: signal.raise_signal(number))
    assert main(["doctor"]) == 128 + number
    out, err = capsys.readouterr()
    assert (out, err) == ("", f"wavalign-fast: interrupted by {signal.Signals(number).name}\n")

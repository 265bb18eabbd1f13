"""Signals while a run trains."""

import signal

import pytest

from wavalign_fast.train.stop_signal import StopSignal


@pytest.fixture(params=StopSignal.SIGNALS, ids=lambda number: number.name)
def number(request):
    return request.param


@pytest.fixture
def outer(number):
    """Installs outer handlers and returns the list of signals that reached them."""
    came = []
    before = {n: signal.signal(n, lambda n, _: came.append(n)) for n in StopSignal.SIGNALS}
    yield came
    for n, handler in before.items():
        signal.signal(n, handler)


def test_the_first_signal_is_a_flag_and_the_end_puts_all_back(number, outer):
    with StopSignal() as stop:
        assert stop.received is None
        signal.raise_signal(number)
        assert stop.received == number
    assert outer == []
    signal.raise_signal(number)
    assert outer == [number]


def test_a_second_ctrl_c_acts_as_it_always_did(number, outer):
    with StopSignal() as stop:
        signal.raise_signal(number)
        signal.raise_signal(signal.SIGINT)
        assert outer == [signal.SIGINT]
        assert stop.received == number


def test_a_second_ctrl_c_interrupts_at_once():
    with pytest.raises(KeyboardInterrupt), StopSignal():
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)


def test_what_timeout_and_closing_terminals_send_twice_counts_once(number, outer):
    with StopSignal() as stop:
        signal.raise_signal(number)
        for again in (signal.SIGTERM, signal.SIGHUP, signal.SIGTERM):
            signal.raise_signal(again)
        assert outer == [] and stop.received == number


def test_an_ignored_signal_stays_ignored(number):
    before = signal.signal(number, signal.SIG_IGN)  # nohup, or a job in the background
    try:
        with StopSignal() as stop:
            signal.raise_signal(number)
            assert stop.received is None
        assert signal.getsignal(number) == signal.SIG_IGN
    finally:
        signal.signal(number, before)

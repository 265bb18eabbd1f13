"""Training causes no warning of torch or transformers about our code."""

import logging
import warnings

import pytest

transformers = pytest.importorskip("transformers")


def test_sampling_training_saving_and_loading_use_no_deprecated_name(train):
    logged: list[str] = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: logged.append(record.getMessage())
    logger = transformers.utils.logging.get_logger()
    logger.addHandler(handler)
    # Many warnings are logged once per process, and another test may have caused them before.
    logging.Logger.warning_once.cache_clear()
    try:
        with warnings.catch_warnings(record=True) as warned:
            warnings.simplefilter("always")
            train("train.steps=1", "loss.text_kl=0.1")
            train("train.steps=2", "loss.text_kl=0.1")  # goes on from the checkpoint
    finally:
        logger.removeHandler(handler)
    deprecated = (FutureWarning, DeprecationWarning, PendingDeprecationWarning)
    assert [str(one.message) for one in warned if issubclass(one.category, deprecated)] == []
    assert logged == []


@pytest.mark.usefixtures("toy_recipe", "no_report", "in_tmp_path")
def test_a_clip_that_changes_nothing_is_said_once_in_plain_words(train_toy, caplog):
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        assert train_toy("--arms", "both,rl", "loss.clip=0.2", "train.steps=2") == 0
    assert not [one for one in warned if "clip" in str(one.message)]
    (record,) = [record for record in caplog.records if "clip" in record.message]
    assert record.message.startswith("loss.clip changes nothing: ")

"""The files of ``examples/own_model``: a tiny random model, its tokenizer, records, a reward."""

import importlib.util
import random
from pathlib import Path

import pytest

EXAMPLE = Path(__file__).parents[2] / "examples" / "own_model"


@pytest.fixture(scope="session")
def own_files():
    """The module that makes the files of the example."""
    spec = importlib.util.spec_from_file_location("make_files", EXAMPLE / "make_files.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def model_directory(own_files, tmp_path_factory):
    """A model directory with its tokenizer. Not to be written to."""
    directory = tmp_path_factory.mktemp("own") / "my_model"
    tokenizer = own_files.make_tokenizer()
    tokenizer.save_pretrained(directory)
    own_files.make_model(tokenizer).save_pretrained(directory)
    return directory


@pytest.fixture(scope="session")
def records(own_files):
    return own_files.make_records(12, random.Random(1))

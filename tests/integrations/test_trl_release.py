"""What a user of TRL's trainers reads when something cannot be honoured."""

import importlib
import sys

import pytest

pytest.importorskip("trl")

import trl

from tests.integrations.trl_runs import OURS, run
from wavalign_fast.errors import UserError
from wavalign_fast.integrations import trl as ours
from wavalign_fast.integrations import trl_head


def test_an_option_that_cannot_be_honoured_stops_the_construction():
    named = "cast_lm_head_to_fp32=True: a head in float32: got Linear, want"
    with pytest.raises(UserError, match=named):
        run("GRPO", OURS["GRPO"], lora=["lm_head"], cast_lm_head_to_fp32=True)


def test_trls_own_trainer_is_as_it_was():
    before = trl.trainer.grpo_trainer.add_fused_lm_head, trl.trainer.grpo_trainer.BaseTunerLayer
    run("GRPO", OURS["GRPO"], max_steps=1)
    after = trl.trainer.grpo_trainer.add_fused_lm_head, trl.trainer.grpo_trainer.BaseTunerLayer
    assert before == after
    assert before[0] is trl.trainer.utils.add_fused_lm_head


def test_a_score_that_we_do_not_have_is_refused():
    from tests.integrations.tiny import tiny_model

    with pytest.raises(UserError, match="outputs: got margin, want some of"):
        trl_head.add_fused_lm_head(tiny_model(), outputs=("log_probs", "margin"))


def test_a_class_without_the_seam_is_refused():
    class Mine(ours.FusedHeadMixin, dict):
        pass

    with pytest.raises(UserError, match="bases: got FusedHeadMixin, dict, want a trainer of TRL"):
        Mine()


def test_a_release_with_another_seam_is_refused(monkeypatch):
    def newer(model, temperature=1.0, outputs=(), logit_bias=None):
        pass

    monkeypatch.setattr(trl.trainer.utils, "add_fused_lm_head", newer)
    with pytest.raises(UserError, match="whose add_fused_lm_head takes logit_bias, want"):
        ours._check_release()
    monkeypatch.delattr(trl.trainer.utils, "add_fused_lm_head")
    with pytest.raises(UserError, match=r"trl: got 1\.\d+.*, want 1\.15 or later \(pip install"):
        ours._check_release()


def test_without_trl_the_import_says_what_to_install(monkeypatch, failing_import):
    monkeypatch.delitem(sys.modules, "wavalign_fast.integrations.trl")
    failing_import("trl", ImportError("No module named 'trl'"))
    with pytest.raises(
        UserError, match=r"need the package trl \(pip install 'wavalign-fast\[trl\]"
    ):
        importlib.import_module("wavalign_fast.integrations.trl")

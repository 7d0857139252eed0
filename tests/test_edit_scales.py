"""The scale that an edit is guided at, and what edits of one picture share; on the model of `test_edit_methods`."""

import dataclasses

import jax
import numpy as np
import pytest
from test_edit_methods import FROZEN, IMAGE, MODEL, SHORT, STOPS, Network, make_model, request

from sdd_jax.jobs.editing.methods import TrainedScales, edit, usual_guidance
from sdd_jax.jobs.editing.noise import EditFriendly, SDEdit


def test_the_noise_maps_of_edit_friendly_have_the_published_share_of_the_scale():
    large, small = request(model=dataclasses.replace(MODEL, sample_size=64)), request()
    assert EditFriendly().source_scale(large) == pytest.approx(3.5) and EditFriendly().source_scale(small) == 1.0
    assert EditFriendly(guidance=6.0).source_scale(small) == pytest.approx(1.4), "of the edit's own scale"
    assert EditFriendly(guidance=6.0, source_guidance=2.0).source_scale(large) == 2.0


def test_a_run_is_guided_at_the_scales_that_it_was_trained_at():
    """An iCD run and a student of stage 1; the usual scale is the nearest of them, another one is refused."""
    student, scales = make_model(time_cond_proj_dim=512), TrainedScales((1.0, 2.0, 4.0))
    run = dataclasses.replace(request(model=student), frozen={**FROZEN, **STOPS, "scales": scales})
    for method, flag in (("icd", "guidance"), ("icd-switch", "guidance"), ("ddib", "guidance"), ("sdedit", "guidance"),
                         ("infedit", "guidance"), ("p2p", "guidance"), ("edit-friendly", "source_guidance"),
                         ("dds", "guidance")):  # fmt: skip
        with pytest.raises(ValueError, match=rf"--option {flag}=3.5: this model was trained at 1, 2, 4$"):
            edit(method, dataclasses.replace(run, options={flag: 3.5}))
    assert SDEdit().scale(run) in (2.0, 4.0) and SDEdit(guidance=4.0).scale(run) == 4.0, "the usual one is 3"
    assert EditFriendly().source_scale(run) == 1.0 and EditFriendly(guidance=4.0).source_scale(run) == 1.0
    between = dataclasses.replace(run, frozen={"scales": TrainedScales((1.0, 2.5), interval=True)})
    assert SDEdit().scale(between) == 2.5 and SDEdit(guidance=1.7).scale(between) == 1.7
    with pytest.raises(ValueError, match="guidance=3: this model was trained at 1 to 2.5"):
        SDEdit(guidance=3.0).scale(between)


def test_null_text_is_optimised_once_for_all_controls():
    """Its noise and empty prompts depend on no control: the second answer is that of a request alone, and cheaper."""
    alone = edit("nti", request(**{**SHORT["nti"], "cross": 0.0}))
    first = dataclasses.replace(request(**SHORT["nti"]), kept={})
    edit("nti", first)
    jax.effects_barrier()
    Network.rows = 0
    second = edit("nti", dataclasses.replace(first, options={**SHORT["nti"], "cross": 0.0}))
    jax.effects_barrier()
    assert Network.rows / len(IMAGE) == 4 * 5 and second.evaluations == alone.evaluations > 4 * 5
    np.testing.assert_allclose(second.image, alone.image, atol=1e-6)
    edit("nti", dataclasses.replace(first, options={**SHORT["nti"], "guidance": 1.5}))
    assert len(first.kept) == 2, "another scale has prompts of its own"


def test_the_usual_guidance():
    assert usual_guidance(MODEL) == 3.0
    assert usual_guidance(dataclasses.replace(MODEL, sample_size=64)) == 7.5
    assert usual_guidance(dataclasses.replace(MODEL, sample_size=64), 15.0) == 15.0

"""What FIPOTrainer takes for granted about TRL: the one place to look when TRL moves. A failure says what changed."""

import inspect

import pytest
import trl
from trl import GRPOTrainer
from trl.trainer import utils
from trl.trainer.utils import RepeatSampler

from fipo.trainer.fresh_groups import MERGED

READ_AT = "1.16"

METHODS = {  # overridden or called, with their parameters
    "__init__": "self model reward_funcs",
    "_calculate_rewards": "self inputs prompts completions completion_ids_list",
    "_compute_loss": "self model inputs",
    "_generate_and_score_completions": "self inputs",
    "_generate_single_turn": "self prompt_ids images multimodal_fields num_generations has_tool_images",
    "_get_output_dir": "self trial",
    "_get_per_token_logps_and_entropies": "self model input_ids attention_mask logits_to_keep",
    "_get_train_sampler": "self dataset",
    "_load_optimizer_and_scheduler": "self checkpoint",
    "_load_rng_state": "self checkpoint",
    "_push_from_checkpoint": "self checkpoint_folder",
    "_run_epoch": "self",
    "_save_checkpoint": "self model trial",
    "_tokenize_prompts": "self prompts",
    "log": "self logs start_time",
    "train": "self resume_from_checkpoint",
}
ELSEWHERE = {  # in whose place fipo's head stands; and what is wrapped
    utils._ChunkedLogProbFunction.forward: (
        "ctx hidden weight bias targets temperature chunk_size final_logit_softcapping logit_scale outputs"
    ),
    RepeatSampler.__init__: "self data_source mini_repeat_count batch_size repeat_count shuffle seed",
}
OF_FIPO = {"reward_total", "rewards_by_name"}
PHRASES = {  # method → what its source must hold
    "_prepare_inputs": ["self._step % generate_every == 0", "self._buffered_inputs is None"],  # for WholeCheckpoints
    "_compute_loss": ['advantages = inputs["advantages"]', 'inputs.get("old_per_token_logps")'],  # after scoring
    "_generate_and_score_completions": [f'"{name}"' for name in {*MERGED, "num_items_in_batch"} - OF_FIPO],
}
LOST = f"TRL {trl.__version__} changed {{}}, which fipo read at {READ_AT}; adapt fipo.trainer."


@pytest.mark.parametrize("name", METHODS)
def test_methods(name):
    found = list(inspect.signature(getattr(GRPOTrainer, name)).parameters)
    expected = METHODS[name].split()
    assert found[: len(expected)] == expected, LOST.format(f"GRPOTrainer.{name}")


def test_what_is_replaced_or_wrapped():
    for function, expected in ELSEWHERE.items():
        assert list(inspect.signature(function).parameters) == expected.split(), LOST.format(function.__qualname__)
    assert callable(utils._use_triton) and callable(utils.maybe_gather_lm_head_ctx)


@pytest.mark.parametrize("name", PHRASES)
def test_phrases(name):
    for phrase in PHRASES[name]:
        assert phrase in inspect.getsource(getattr(GRPOTrainer, name)), LOST.format(f"{name}: {phrase}")

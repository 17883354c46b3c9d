"""What FIPOTrainer takes for granted about TRL. A failure says what changed; nothing falls back to another loss."""

import inspect

import pytest
import trl
from trl import GRPOTrainer
from trl.trainer.utils import RepeatSampler

SIGNATURES = {
    "_compute_loss": ["self", "model", "inputs"],
    "_generate_and_score_completions": ["self", "inputs"],
    "_calculate_rewards": ["self", "inputs", "prompts", "completions", "completion_ids_list"],
    "_tokenize_prompts": ["self", "prompts"],
    "_generate_single_turn": [
        *("self", "prompt_ids", "images", "multimodal_fields", "num_generations", "has_tool_images"),
    ],
    "_get_train_sampler": ["self", "dataset"],
    "_save_checkpoint": ["self", "model", "trial"],
    "_load_optimizer_and_scheduler": ["self", "checkpoint"],
    "get_high_entropy_mask": ["self", "entropies", "mask", "threshold"],
    "get_off_policy_mask": [
        *("advantages", "per_token_logps", "sampling_per_token_logps", "mask", "off_policy_threshold"),
    ],
}


@pytest.mark.parametrize("name", SIGNATURES)
def test_signatures(name):
    found = list(inspect.signature(getattr(GRPOTrainer, name)).parameters)
    assert found == SIGNATURES[name], f"TRL {trl.__version__} changed GRPOTrainer.{name}; adapt fipo.trainer to it."


@pytest.mark.parametrize(
    "phrase",
    [
        '"old_per_token_logps"',
        '"importance_sampling_ratio"',
        '"sampling_per_token_logps"',
        '"ref_per_token_logps"',
        '"num_items_in_batch"',
        '"tool_mask"',
    ],
)
def test_keys_of_a_rollout(phrase):
    source = inspect.getsource(GRPOTrainer._generate_and_score_completions)
    assert phrase in source, f"TRL {trl.__version__} no longer puts {phrase} into a rollout; adapt fipo.trainer to it."


@pytest.mark.parametrize("phrase", ["self._step % generate_every == 0", "self._buffered_inputs is None"])
def test_the_rollout_buffer(phrase):
    source = inspect.getsource(GRPOTrainer._prepare_inputs)
    assert phrase in source, f"TRL {trl.__version__} buffers rollouts in another way; adapt fipo.trainer.checkpoint."


def test_the_sampler():
    found = list(inspect.signature(RepeatSampler.__init__).parameters)[1:]
    assert found == ["data_source", "mini_repeat_count", "batch_size", "repeat_count", "shuffle", "seed"]

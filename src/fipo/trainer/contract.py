"""What fipo takes for granted about TRL's GRPOTrainer: the one place to look when TRL moves.

tests/trainer/test_contract.py holds these tables, and whatever else FIPOTrainer uses of TRL, to the installed one.
"""

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
MERGED = (  # the (B, …) tensors of a rollout that dynamic sampling merges
    *("prompt_ids", "prompt_mask", "completion_ids", "completion_mask", "tool_mask", "old_per_token_logps"),
    *("ref_per_token_logps", "sampling_per_token_logps", "importance_sampling_ratio", "advantages"),
    *("reward_total", "rewards_by_name"),  # fipo's own
)
KERNEL = (  # parameters of trl.trainer.utils._ChunkedLogProbFunction.forward, in whose place fipo's head stands
    "ctx hidden weight bias targets temperature chunk_size final_logit_softcapping logit_scale outputs"
)
PHRASES = {  # method → what its source must hold
    "_prepare_inputs": ("self._step % generate_every == 0", "self._buffered_inputs is None"),  # for WholeCheckpoints
    "_compute_loss": ('advantages = inputs["advantages"]', 'inputs.get("old_per_token_logps")'),  # after scoring
}

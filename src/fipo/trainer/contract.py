"""What fipo uses of TRL's GRPOTrainer, by name: the one place to look when TRL moves.

tests/trainer/test_contract.py walks these tables against the installed TRL, and finds uses that are not in them.
"""

READ_AT = "1.16"

OVERRIDDEN = {  # method → its parameters
    "__init__": "self model reward_funcs",
    "_calculate_rewards": "self inputs prompts completions completion_ids_list",
    "_compute_loss": "self model inputs",
    "_generate_and_score_completions": "self inputs",
    "_get_output_dir": "self trial",
    "_get_per_token_logps_and_entropies": "self model input_ids attention_mask logits_to_keep",
    "_get_train_sampler": "self dataset",
    "_load_optimizer_and_scheduler": "self checkpoint",
    "_push_from_checkpoint": "self checkpoint_folder",
    "_run_epoch": "self",
    "_save_checkpoint": "self model trial",
    "log": "self logs start_time",
    "train": "self resume_from_checkpoint",
}
CALLED = {
    "_generate_single_turn": "self prompt_ids images multimodal_fields num_generations has_tool_images",
    "_load_rng_state": "self checkpoint",
    "_tokenize_prompts": "self prompts",
    "add_callback": "self callback",
    "end": "self",
    "is_world_process_zero": "self",
    "remove_callback": "self callback",
    "save_model": "self output_dir",
}
ATTRIBUTES = (
    *("_buffered_inputs", "_logs", "_metrics", "_name", "_paper", "_step", "_tag_names", "_tokenizer", "accelerator"),
    *("args", "callback_handler", "control", "eos_token_ids", "generation_config", "is_deepspeed_enabled"),
    *("is_fsdp_enabled", "model", "num_generations", "num_iterations", "processing_class", "ref_model"),
    *("reward_func_names", "reward_funcs", "reward_weights", "state", "temperature", "train_dataset", "use_vllm"),
    *("vllm_generation", "vllm_importance_sampling_correction"),
)
HOMES = {  # what is imported → where from
    "FusedCausalLMOutput": "trl.trainer.utils",
    "RepeatSampler": "trl.trainer.utils",
    "maybe_gather_lm_head_ctx": "trl.trainer.utils",
    "rotate_checkpoints": "transformers.trainer_utils",
}
MERGED = (  # the (B, …) tensors of a rollout that dynamic sampling merges
    *("prompt_ids", "prompt_mask", "completion_ids", "completion_mask", "tool_mask", "old_per_token_logps"),
    *("ref_per_token_logps", "sampling_per_token_logps", "importance_sampling_ratio", "advantages"),
    *("reward_total", "rewards_by_name"),  # fipo's own
)
PHRASES = {  # method → what its source must hold for a rollout to be buffered as WholeCheckpoints expects
    "_prepare_inputs": ("self._step % generate_every == 0", "self._buffered_inputs is None"),
}

"""slime's parse_args as the contract has it: unknown flags pass in silence, and a YAML file has the last word."""

import argparse

import yaml


def parse_args(add_custom_arguments=None):
    parser = argparse.ArgumentParser(allow_abbrev=False)
    if add_custom_arguments is not None:
        parser = add_custom_arguments(parser)
    parser.add_argument("--loss-type", choices=["policy_loss", "sft_loss", "custom_loss"], default="policy_loss")
    parser.add_argument("--custom-loss-function-path", default=None)
    parser.add_argument("--custom-config-path", default=None)
    parser.add_argument("--custom-megatron-before-train-step-hook-path", default=None)
    parser.add_argument("--advantage-estimator", default="grpo")
    for name in ("rollout-batch-size", "global-batch-size", "num-steps-per-rollout"):
        parser.add_argument(f"--{name}", type=int, default=None)
    parser.add_argument("--n-samples-per-prompt", type=int, default=1)
    for name in ("eps-clip", "eps-clip-high", "eps-clip-c", "lr"):
        parser.add_argument(f"--{name}", type=float, default=None)
    for name in ("use-tis", "use-rollout-logprobs"):
        parser.add_argument(f"--{name}", action="store_true")
    args, _ = parser.parse_known_args()
    assert not (args.use_tis and args.use_rollout_logprobs)
    if args.num_steps_per_rollout is not None:
        args.global_batch_size = args.rollout_batch_size * args.n_samples_per_prompt // args.num_steps_per_rollout
    if args.custom_config_path:
        with open(args.custom_config_path) as file:
            vars(args).update(yaml.safe_load(file) or {})
    return args

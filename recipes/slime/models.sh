# Megatron's arguments for the dense Qwen3.5 models that MODEL_SIZE names. Sourced; sets MODEL_ARGS.
case "${MODEL_SIZE}" in
   0.8B)
      SIZE_ARGS=(
         --num-layers 24 --hidden-size 1024 --ffn-hidden-size 3584
         --num-attention-heads 8 --num-query-groups 2
      )
      ;;
   2B)
      SIZE_ARGS=(
         --num-layers 24 --hidden-size 2048 --ffn-hidden-size 6144
         --num-attention-heads 8 --num-query-groups 2
      )
      ;;
   4B)
      SIZE_ARGS=(
         --num-layers 32 --hidden-size 2560 --ffn-hidden-size 9216
         --num-attention-heads 16 --num-query-groups 4
      )
      ;;
   *)
      stop "MODEL_SIZE is ${MODEL_SIZE}, but must be 0.8B, 2B or 4B."
      ;;
esac

MODEL_ARGS=(
   --spec slime_plugins.models.qwen3_5 get_qwen3_5_spec
   "${SIZE_ARGS[@]}"
   --vocab-size 248320
   --kv-channels 256
   --group-query-attention
   --use-gated-attention
   --attention-output-gate
   --qk-layernorm
   --disable-bias-linear
   --swiglu
   --normalization RMSNorm
   --apply-layernorm-1p
   --norm-epsilon 1e-6
   --position-embedding-type rope
   --rotary-base 10000000
   --rotary-percent 0.25
)

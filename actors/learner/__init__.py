"""The learner: ranks of one DeepSpeed group. The only folder that imports deepspeed."""

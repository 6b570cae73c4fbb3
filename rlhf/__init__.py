"""The parts that the stages are made of. They import no stage and no reward.

A wing imports from the lines above its own and from no other, files of one line also from one another;
tests/test_imports.py holds it. The way of a demonstration, a
ranking, a PPO step and a stop through them is in docs/architecture.md.

    errors, ranks, console, tables, shapes, seeding, files, hashing, distributed, locks    what everything stands on
    ops, kl, losses, advantages    the arithmetic of PPO: tensors in, tensors out
    config         what can be set, and what is said of a setting that cannot be
    tracking       what a stage measures: metrics.jsonl, the terminal, W&B
    artifacts      what a stage leaves behind: the manifest, what fits what, what must run again
    data           from files, folders and hub ids to checked demonstrations and prompts in their splits
    text           dialogues as text and token ids: the tokenizer, the chat template, padding
    engines        what trains a model: plain PyTorch, or DeepSpeed
    models         policies and scalar models: built, read, with or without adapters, saved
    rollout        responses sampled from a policy
    checkpoints    what an unfinished training goes on from
    training       what SFT and the reward model's training share
    ppo            PPO: the loop, the experience, the update, the critic, what must hold meanwhile
    preflight      memory and disk that a stage will need
    run            one run of one stage: command line, exit codes, stop, sweep, the artifact
"""

"""The collection server: people rank K answers per prompt in a browser, and what they entered trains the reward model.

`python -m reward.collect --help` lists the commands. Needs the extra `[collect]`; stages and training do not import it.
"""

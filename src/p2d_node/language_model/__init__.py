"""From kept visual tokens and a question to an answer."""

import logging

# transformers imports torchao where it is installed, which warns of compiled parts that lack a
# GPU's libraries, though none of them is used here, and of how it calls torch.
for _name in ('torchao', 'torch.utils._pytree'):
    logging.getLogger(_name).setLevel(logging.ERROR)

"""Visual tokens and questions come in; answers go out."""

import logging

# transformers imports torchao if it is installed. torchao then warns about compiled extensions
# without GPU libraries, which are not used here, and about its own calls of torch.
for _name in ('torchao', 'torch.utils._pytree'):
    logging.getLogger(_name).setLevel(logging.ERROR)

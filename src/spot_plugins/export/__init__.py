"""
Export of a committed step to files and folders of other libraries, which load them without this package.

Each function runs on the main thread of a ``spot`` process or of a program beside the training, and reads on a pool of
threads. Nothing of a checkpoint is run, and only the modules that write files of torch import torch. What must never
break: an output appears whole or not at all, it replaces nothing, and each byte in it was verified. Begin with
:mod:`.outputs`, then read :mod:`.safetensors`.
"""

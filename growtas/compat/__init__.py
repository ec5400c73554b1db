"""Other projects' model classes on growtas' kernels, for their own scripts.

Import one where the script imports the original: :mod:`growtas.compat.autoformer` for AutoFormer's
``model.supernet_transformer``, :mod:`growtas.compat.prenas` for PreNAS's.
"""

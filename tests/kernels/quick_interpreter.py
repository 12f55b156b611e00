"""Triton's interpreter, with less to do for every number: it makes types, shapes and tables again at each operation.

Types and shapes that are equal become the same ones, and what is the same is not compared. Knows nothing of what is
computed: results are those of the interpreter as it comes.
"""

from dataclasses import replace

import triton.language as tl
from triton.runtime import interpreter

numpy_type_of = interpreter._get_np_dtype
patch_language = interpreter._patch_lang
restore = interpreter._LangPatchScope.restore
init_block_type = tl.block_type.__init__
init_tensor = tl.tensor.__init__
equal_types = tl.dtype.__eq__
equal_tuples = tl.tuple.__eq__

# What was found of types, by their names: that of a block's type has its shape in it.
_numpy_types, _shapes = {}, {}
# By the type of elements, and the shape.
_block_types = {}
# By the names that a kernel has for the language.
_scopes = {}


def _numpy_type_of(kind):
    if kind.name not in _numpy_types:
        _numpy_types[kind.name] = numpy_type_of(kind)
    return _numpy_types[kind.name]


def _init_block_type(kind, element_type, shape):
    key = element_type.name, *shape
    if key not in _block_types:
        init_block_type(kind, element_type, shape)
        _block_types[key] = vars(kind)
    vars(kind).update(_block_types[key])


def _init_tensor(tensor, handle, kind):
    if kind.name not in _shapes:
        init_tensor(tensor, handle, kind)
        _shapes[kind.name] = tensor.numel, tensor.shape
    tensor.handle, tensor.type, tensor.dtype = handle, kind, kind.scalar
    tensor.numel, tensor.shape = _shapes[kind.name]


def _equal_types(kind, other):
    return kind is other or equal_types(kind, other)


def _equal_tuples(one, other):
    return tl.constexpr(True) if one is other else equal_tuples(one, other)


def _patch_member(owner, name, member, _builder, scope):
    def call(*arguments, **options):
        options["_semantic"] = interpreter.interpreter_semantic
        return member(*arguments, **options)

    scope.set_attr(owner, name, call)


def _patch_language(kernel):
    """Once a launch for each part of the language, not for every function that is called."""
    parts = frozenset(name for name, value in kernel.__globals__.items() if value is tl or value is tl.core)
    if parts not in _scopes:
        _scopes[parts] = patch_language(kernel)
    return _scopes[parts]


def _restore(scope):
    _scopes.clear()
    restore(scope)


# Integers that overflow are not looked for: those here are small.
interpreter.interpreter_builder.options = replace(interpreter.interpreter_builder.options, sanitize_overflow=False)
interpreter._get_np_dtype = _numpy_type_of
interpreter._patch_attr = _patch_member
interpreter._patch_lang = _patch_language
interpreter._LangPatchScope.restore = _restore
tl.block_type.__init__ = _init_block_type
tl.tensor.__init__ = _init_tensor
tl.dtype.__eq__ = _equal_types
tl.tuple.__eq__ = _equal_tuples

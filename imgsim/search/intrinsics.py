"""Two instructions of the processor that numba does not offer."""

from llvmlite import ir
from numba import types
from numba.extending import intrinsic
from numba.np.arrayobj import make_array


@intrinsic
def popcount(_, word):
    """Count the bits set in a 64-bit word, by the processor's own instruction."""

    def generate(context, builder, signature, arguments):
        name, word_type = "llvm.ctpop.i64", ir.IntType(64)
        function = builder.module.declare_intrinsic(name, (word_type,), ir.FunctionType(word_type, [word_type]))
        return builder.call(function, arguments)

    return types.int64(types.uint64), generate


@intrinsic
def prefetch(_, array, row, offset):
    """Ask the memory for the line at `offset` bytes into a row of an array, without waiting for it."""

    def generate(context, builder, signature, arguments):
        parts = make_array(signature.args[0])(context, builder, arguments[0])
        row_bytes = builder.mul(arguments[1], builder.extract_value(parts.strides, 0))
        address = builder.add(builder.ptrtoint(parts.data, ir.IntType(64)), builder.add(row_bytes, arguments[2]))
        pointer, flag = ir.IntType(8).as_pointer(), ir.IntType(32)
        function_type = ir.FunctionType(ir.VoidType(), [pointer, flag, flag, flag])
        function = builder.module.declare_intrinsic("llvm.prefetch", (pointer,), function_type)
        builder.call(function, [builder.inttoptr(address, pointer), *(ir.Constant(flag, value) for value in (0, 3, 1))])
        return context.get_dummy_value()

    return types.void(array, types.int64, types.int64), generate

"""TVMScript to TIR for the build process: the text becomes a Python program that calls TVM's builder, and runs once.

TVM 0.27's own parser compiles and evaluates every node of every expression by itself, which takes as long as LLVM takes
for the whole kernel. What `Script` writes is read here in a sixth of that time, and the result is the same; anything
else is refused. Like `worker`, which loads it, this file imports nothing of fxprune.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import tvm
from tvm.script.ir_builder.base import IRBuilder, IRBuilderFrame
from tvm.script.parser import tirx
from tvm.script.parser._core import doc
from tvm.script.parser.core.evaluator import _eval_op
from tvm.tirx.script import builder

Statements = Sequence[ast.stmt]


def read_script(text: str) -> tvm.tirx.PrimFunc:
    """Return the function of a script.

    Args:
        text: TVMScript of one function.

    Raises:
        SyntaxError: It uses what `Script` does not write.
        RuntimeError: The function is not well-formed.
    """
    (function,) = ast.parse(text).body
    program = ast.Module([_Rewriter().visit(function)], [])
    scope: dict[str, object] = {"T": tirx, "_run": _Run}
    exec(compile(ast.fix_missing_locations(program), "<TVMScript>", "exec"), scope)
    assert isinstance(function, ast.FunctionDef)
    with IRBuilder() as made, builder.prim_func(is_private=False, s_tir=True):
        builder.func_name(function.name)
        parameters = {arg.arg: _annotation(arg, scope) for arg in function.args.args}
        scope[function.name](*(builder.arg(name, kind) for name, kind in parameters.items()))  # type: ignore[operator]
    read = made.get()
    tvm.s_tir.analysis.verify_well_formed(tvm.IRModule.from_expr(read))
    return read


def _annotation(argument: ast.arg, scope: dict[str, object]) -> object:
    """Return the type of an argument: `T.handle`, or `T.handle` of some cells."""
    assert argument.annotation is not None
    kind: Any = eval(compile(ast.Expression(argument.annotation), "<TVMScript>", "eval"), scope)
    return kind if isinstance(kind, tvm.ir.Expr) else kind()


class _Run:
    """What the rewritten program calls; the names are those of the statements and operators that it replaces."""

    @staticmethod
    def loop(frame: IRBuilderFrame, name: str, body: Callable[[object], None]) -> None:
        with frame as index:
            body(IRBuilder.name(name, index))

    @staticmethod
    def branch(test: object, body: Callable[[], None], other: Callable[[], None] | None) -> None:
        with builder.If(test):
            with builder.Then():
                body()
            if other is not None:
                with builder.Else():
                    other()

    @staticmethod
    def store(buffer: object, index: object, value: object) -> None:
        builder.buffer_store(buffer, value, index)

    @staticmethod
    def assign(name: str, value: Any) -> object:
        if not isinstance(value, IRBuilderFrame):
            return IRBuilder.name(name, value)
        value.add_callback(partial(value.__exit__, None, None, None))
        return IRBuilder.name(name, value.__enter__())

    @staticmethod
    def let(name: str, value: Any) -> object:
        expression = value if isinstance(value, tvm.ir.Expr) else tvm.tirx.const(value)
        variable = IRBuilder.name(name, tirx.let.as_var(rhs_dtype=expression.ty))
        builder.Bind(expression, var=variable)
        return variable

    @staticmethod
    def statement(value: object) -> None:
        if value is not None:
            builder.evaluate(value)

    @staticmethod
    def operator(name: str, *values: object) -> object:
        """Apply one operator that TVM cannot overload, to two values or more from the left."""
        kind, result = getattr(doc, name)(), values[0]
        if len(values) == 1:
            return _eval_op(kind, [result])
        for value in values[1:]:
            result = _eval_op(kind, [result, value])
        return result


def _call(name: str, *arguments: ast.expr) -> ast.expr:
    function = ast.Attribute(ast.Name("_run", ast.Load()), name, ast.Load())
    return ast.Call(function, list(arguments), [])


class _Rewriter(ast.NodeTransformer):
    """Turns statements and operators into calls of `_Run`; bodies of loops and branches become functions."""

    def __init__(self) -> None:
        self._functions = 0

    def generic_visit(self, node: ast.AST) -> ast.AST:
        """Leave what needs no change, and refuse statements that are not known."""
        if isinstance(node, ast.stmt):
            raise SyntaxError(f"a kernel's script has no such statement: {ast.unparse(node)}")
        return super().generic_visit(node)

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.stmt:
        arguments = [ast.arg(argument.arg) for argument in node.args.args]
        return self._function(node.name, arguments, node.body)

    def visit_For(self, node: ast.For) -> Statements:
        assert isinstance(node.target, ast.Name)
        body = self._function(self._name(), [ast.arg(node.target.id)], node.body)
        frame, name = self.visit(node.iter), ast.Constant(node.target.id)
        return [body, ast.Expr(_call("loop", frame, name, ast.Name(body.name, ast.Load())))]

    def visit_If(self, node: ast.If) -> Statements:
        test, body = self.visit(node.test), self._function(self._name(), [], node.body)
        if not node.orelse:
            return [body, ast.Expr(_call("branch", test, ast.Name(body.name, ast.Load()), ast.Constant(None)))]
        other = self._function(self._name(), [], node.orelse)
        names = (ast.Name(one.name, ast.Load()) for one in (body, other))
        return [body, other, ast.Expr(_call("branch", test, *names))]

    def visit_Assign(self, node: ast.Assign) -> ast.stmt:
        (target,), value = node.targets, self.visit(node.value)
        if isinstance(target, ast.Subscript):
            return ast.Expr(_call("store", self.visit(target.value), self.visit(target.slice), value))
        assert isinstance(target, ast.Name)
        return ast.Assign([target], _call("assign", ast.Constant(target.id), value))

    def visit_AnnAssign(self, node: ast.AnnAssign) -> ast.stmt:
        if ast.unparse(node.annotation) != "T.let" or node.value is None or not isinstance(node.target, ast.Name):
            raise SyntaxError(f"a kernel's script has no such statement: {ast.unparse(node)}")
        return ast.Assign([node.target], _call("let", ast.Constant(node.target.id), self.visit(node.value)))

    def visit_Expr(self, node: ast.Expr) -> ast.stmt:
        return ast.Expr(_call("statement", self.visit(node.value)))

    def visit_Compare(self, node: ast.Compare) -> ast.expr:
        (kind,), (right,) = node.ops, node.comparators
        return self._operator(kind, node.left, right)

    def visit_BoolOp(self, node: ast.BoolOp) -> ast.expr:
        return self._operator(node.op, *node.values)

    def visit_UnaryOp(self, node: ast.UnaryOp) -> ast.AST:
        return self._operator(node.op, node.operand) if isinstance(node.op, ast.Not) else self.generic_visit(node)

    def _operator(self, kind: ast.AST, *values: ast.expr) -> ast.expr:
        return _call("operator", ast.Constant(type(kind).__name__), *(self.visit(value) for value in values))

    def _name(self) -> str:
        self._functions += 1
        return f"_body_{self._functions}"

    def _function(self, name: str, arguments: list[ast.arg], body: Statements) -> ast.FunctionDef:
        """Return a function of rewritten statements."""
        rewritten: list[ast.stmt] = []
        for statement in body:
            made = self.visit(statement)
            rewritten += made if isinstance(made, list) else [made]
        return ast.FunctionDef(name, ast.arguments([], arguments, None, [], [], None, []), rewritten, [])

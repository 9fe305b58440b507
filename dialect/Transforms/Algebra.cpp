//===- Algebra.cpp - sums of products with the least work on the entries' side ----------------===//
//
// A contraction of keys (or values) with something small is taken of the keys as they lie in
// memory: what is done to them first, if it is linear, is done to the small side instead, once. A
// sum over two names of one axis of x m x' is a quadratic form of x, which the half of m on one
// side of its diagonal gives.
//
//===------------------------------------------------------------------------------------------===//
#include "dialect/IR/Kvplan.h"
#include "dialect/Transforms/Passes.h"

#include "mlir/IR/ImplicitLocOpBuilder.h"

namespace kvpc {
#define GEN_PASS_DEF_KVPALGEBRA
#include "dialect/Transforms/Passes.h.inc"
} // namespace kvpc

using namespace mlir;
using namespace kvpc;
using kvp::Fn;
using kvp::NamedTensorType;
using kvp::tensorOf;

/// On contractions whose small side does what was done to the stream, for `kvpc explain`.
static constexpr StringRef kMoved = "kvp.moved";

static bool hasAxis(Value v, StringRef axis) {
  NamedTensorType type = tensorOf(v);
  return type && type.hasAxis(axis);
}

static bool hasEntries(Value v) {
  NamedTensorType type = tensorOf(v);
  return type && llvm::any_of(type.getAxes(), kvp::isEntryAxis);
}

/// Whether a value has entries, queries or not.
static bool hasTokens(Value v) {
  NamedTensorType type = tensorOf(v);
  return type && llvm::any_of(type.getAxes(), [](kvp::AxisAttr axis) {
           return kvp::isEntryAxis(axis) && !kvp::isAllQueries(axis);
         });
}

/// Keys or values as the host gives them, of which no channel went.
static bool isStream(Value v) {
  auto input = v.getDefiningOp<kvp::InputOp>();
  if (!input || (input.getInput() != kvp::Input::Keys && input.getInput() != kvp::Input::Values))
    return false;
  for (Value cache = input.getCache(); Operation *op = cache.getDefiningOp();
       cache = op->getOperand(0))
    if (auto topk = dyn_cast<kvp::TopkOp>(op); topk && topk.getElementAxis() == "channel")
      return false;
  return true;
}

namespace {

/// A contraction over `axis` of a stream, which calls the axis `own`, with what has no entries.
struct Moved {
  Value stream;
  std::string own;
  Value small;
};

class Algebra {
public:
  explicit Algebra(Operation *op) : b(op->getLoc(), op) {}

  /// The value that takes the place of an operation's; null: none.
  Value replacement(Operation *op) {
    if (auto dot = dyn_cast<kvp::DotOp>(op)) {
      if (Value form = quadratic(dot))
        return form;
      return linear(dot);
    }
    auto reduce = dyn_cast<kvp::ReduceOp>(op);
    if (!reduce)
      return {};
    if (Value sum = overQueries(reduce))
      return sum;
    return contraction(reduce);
  }

private:
  ImplicitLocOpBuilder b;

  Value map(Fn fn, ValueRange operands) { return kvp::MapOp::create(b, fn, operands); }
  Value rename(Value x, StringRef from, StringRef to) {
    return from == to ? x : kvp::RenameOp::create(b, x, from, to).getResult();
  }
  /// `x` with axis `from` called `to`; null where it has that axis already.
  Value renamed(Value x, StringRef from, StringRef to) {
    if (from == to || !hasAxis(x, from))
      return x;
    return hasAxis(x, to) ? Value() : rename(x, from, to);
  }

  /// sum over `axis` of x * small, where `x` calls that axis `own`: with what is done to the stream
  /// in x done to `small` instead. Nothing where x is not linear in one stream.
  std::optional<Moved> moved(Value x, StringRef own, Value small, StringRef axis) {
    if (isStream(x))
      return Moved{x, own.str(), small};
    Operation *op = x.getDefiningOp();
    if (!op)
      return std::nullopt;
    if (auto rename = dyn_cast<kvp::RenameOp>(op)) {
      if (rename.getTo() != own)
        return std::nullopt;
      return moved(rename.getInput(), rename.getFrom(), small, axis);
    }
    if (auto pair = dyn_cast<kvp::PairOp>(op)) {
      if (pair.getAxis() != own)
        return std::nullopt;
      return moved(pair.getInput(), own, kvp::PairOp::create(b, small, axis), axis);
    }
    auto map = dyn_cast<kvp::MapOp>(op);
    if (!map)
      return std::nullopt;
    switch (map.getFn()) {
    case Fn::Add:
    case Fn::Sub: {
      auto left = moved(map.getOperand(0), own, small, axis);
      if (!left)
        return std::nullopt;
      auto right = moved(map.getOperand(1), own, small, axis);
      if (!right || right->stream != left->stream || right->own != left->own)
        return std::nullopt;
      left->small = this->map(map.getFn(), {left->small, right->small});
      return left;
    }
    case Fn::Neg:
      return moved(map.getOperand(0), own, this->map(Fn::Neg, small), axis);
    case Fn::Mul:
    case Fn::Div:
      for (unsigned i : {0u, 1u}) {
        Value other = map.getOperand(1 - i);
        if ((i == 1 && map.getFn() == Fn::Div) || hasEntries(other) ||
            !hasEntries(map.getOperand(i)))
          continue;
        // What the stream is multiplied by may call the axis otherwise.
        if (tensorOf(other))
          other = renamed(other, own, axis);
        if (!other)
          continue;
        return moved(map.getOperand(i), own, this->map(map.getFn(), {small, other}), axis);
      }
      return std::nullopt;
    default:
      return std::nullopt;
    }
  }

  /// dot(A k, m) = dot(k, A' m).
  Value linear(kvp::DotOp op) {
    for (unsigned i : {0u, 1u}) {
      Value x = op->getOperand(i), small = op->getOperand(1 - i);
      if (!hasTokens(x) || hasTokens(small) || isStream(x))
        continue;
      auto out = moved(x, op.getOver(), small, op.getOver());
      if (!out)
        continue;
      Value other = renamed(out->small, op.getOver(), out->own);
      if (!other)
        continue;
      auto dot = kvp::DotOp::create(b, out->stream, other, out->own);
      dot->setAttr(kMoved, b.getUnitAttr());
      return dot;
    }
    return {};
  }

  /// dot(dot(A k, m, a), A k', a') is k' (A' m A) k.
  Value quadratic(kvp::DotOp outer) {
    for (unsigned i : {0u, 1u}) {
      auto inner = outer->getOperand(i).getDefiningOp<kvp::DotOp>();
      Value second = outer->getOperand(1 - i);
      if (!inner || !hasEntries(second))
        continue;
      StringRef a = inner.getOver(), c = outer.getOver();
      for (unsigned j : {0u, 1u}) {
        Value first = inner->getOperand(j), small = inner->getOperand(1 - j);
        if (!hasEntries(first) || hasEntries(small) || !hasAxis(small, a) || !hasAxis(small, c) ||
            !hasAxis(small, "head") || hasAxis(second, a) || a == c)
          continue;
        auto one = moved(first, a, small, a);
        if (!one)
          continue;
        auto both = moved(second, c, one->small, c);
        if (!both || both->stream != one->stream || both->own != one->own)
          continue;
        auto form = kvp::FormOp::create(b, one->stream, one->own, both->small, a, c);
        if (both->small != small || inner->hasAttr(kMoved))
          form->setAttr(kMoved, b.getUnitAttr());
        return form;
      }
    }
    return {};
  }

  /// Factors of a product, those of a nested one too.
  static void factorsOf(Value v, SmallVectorImpl<Value> &out) {
    auto map = v.getDefiningOp<kvp::MapOp>();
    if (map && map.getFn() == Fn::Mul && tensorOf(v)) {
      factorsOf(map.getOperand(0), out);
      factorsOf(map.getOperand(1), out);
    } else {
      out.push_back(v);
    }
  }

  Value product(ArrayRef<Value> factors) {
    Value out;
    for (Value factor : factors)
      out = out ? map(Fn::Mul, {out, factor}) : factor;
    return out;
  }

  /// A factor that all queries have leaves the sum over them, which takes blocks of queries.
  Value overQueries(kvp::ReduceOp op) {
    SmallVector<StringRef> over = kvp::axisNames(op.getOver());
    auto product = op.getInput().getDefiningOp<kvp::MapOp>();
    if (op.getKind() != kvp::Reduction::Sum || over.size() != 1 || !product ||
        !kvp::isAllQueries(op.getInput().getType().getAxis(over.front())) ||
        !hasTokens(op.getInput()))
      return {};
    bool divides = product.getFn() == Fn::Div;
    if (!divides && product.getFn() != Fn::Mul)
      return {};
    for (unsigned i : {0u, 1u}) {
      Value x = product.getOperand(i), factor = product.getOperand(1 - i);
      if ((divides && i == 1) || hasAxis(factor, over.front()) || !tensorOf(x) ||
          !tensorOf(x).getElementType().isF32())
        continue;
      Value where = op.getWhere();
      if (where && llvm::any_of(tensorOf(where).getAxes(),
                                [&](kvp::AxisAttr axis) { return !hasAxis(x, axis.getName()); }))
        continue;
      Value sum = kvp::ReduceOp::create(b, kvp::Reduction::Sum, x, op.getOver(), where);
      return map(product.getFn(), {sum, factor});
    }
    return {};
  }

  /// A sum over channels of a product of keys and small values is a contraction; over two names of
  /// them, one after the other.
  Value contraction(kvp::ReduceOp op) {
    SmallVector<StringRef> over = kvp::axisNames(op.getOver());
    if (op.getKind() != kvp::Reduction::Sum || op.getWhere() || over.size() > 2 ||
        !op.getInput().getType().getElementType().isF32() || !hasEntries(op.getInput()) ||
        llvm::any_of(over, [&](StringRef axis) {
          return kvplan::originOf(op.getInput(), axis).second.rtrim('\'') != "channel";
        }))
      return {};
    SmallVector<Value> factors, outside, small;
    factorsOf(op.getInput(), factors);
    // All queries are as small as a window of them where keys are what is swept.
    bool tokens = hasTokens(op.getInput());
    auto isSwept = [&](Value v) { return tokens ? hasTokens(v) : hasEntries(v); };
    Value streams[2], contracted;
    for (Value factor : factors) {
      if (auto type = tensorOf(factor); type && !type.getElementType().isF32())
        return {};
      bool inside[2] = {hasAxis(factor, over.front()),
                        over.size() == 2 && hasAxis(factor, over.back())};
      if (!inside[0] && !inside[1]) {
        outside.push_back(factor);
      } else if (!isSwept(factor)) {
        small.push_back(factor);
      } else {
        Value &place = streams[inside[1]];
        // A second value over entries may be the other side of a form.
        bool second = place && over.size() == 1 && !contracted &&
                      (factor.getDefiningOp<kvp::DotOp>() || place.getDefiningOp<kvp::DotOp>());
        if ((inside[0] && inside[1]) || (place && !second))
          return {};
        (second ? contracted : place) = factor;
      }
    }
    if (contracted && small.empty())
      small.push_back(contracted);
    else if (contracted)
      return {};
    if (small.empty() || !streams[0] || (over.size() == 2 && !streams[1]))
      return {};
    Value sum = kvp::DotOp::create(b, streams[0], product(small), over.front());
    if (over.size() == 2)
      sum = kvp::DotOp::create(b, sum, streams[1], over.back());
    outside.insert(outside.begin(), sum);
    return product(outside);
  }
};

struct AlgebraPass : kvpc::impl::KvpAlgebraBase<AlgebraPass> {
  using KvpAlgebraBase::KvpAlgebraBase;

  void runOnOperation() override {
    for (bool changed = true; changed;) {
      changed = false;
      for (Operation &op : llvm::make_early_inc_range(getOperation().getBody().front())) {
        Value with = Algebra(&op).replacement(&op);
        if (!with)
          continue;
        op.getResult(0).replaceAllUsesWith(with);
        op.erase();
        changed = true;
      }
    }
  }
};

} // namespace

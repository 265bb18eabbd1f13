// The scalar maths of a token: softmax statistics of its logits and derivatives of its losses.
//
// One source for host and device, in float and in double. ops/token_math.py defines the same in
// torch. Every function propagates NaN: clamps are comparisons, because fmin and fmax drop NaN.
#pragma once

#include <cmath>

#if defined(__CUDACC__)
#define WAVALIGN_INLINE __host__ __device__ __forceinline__
#else
#define WAVALIGN_INLINE inline
#endif

namespace wavalign {

// Above `from` nats, the ratio e^x continues along its tangent; `slope` is e^from.
template <typename T>
struct Linear {
  static constexpr T from = T(20);
  static constexpr T slope = T(485165195.40979027797);
};

template <typename T>
WAVALIGN_INLINE T at_most(T value, T bound) {
  return value > bound ? bound : value;
}

template <typename T>
WAVALIGN_INLINE T at_least(T value, T bound) {
  return value < bound ? bound : value;
}

// Softmax sums of some logits z of a row: their max `top`, sum e^(z - top), and
// sum e^(z - top) (z - top). `top` ignores NaN; the sums propagate it.
template <typename T>
struct SoftmaxSums {
  T top;
  T sum;
  T weighted;
};

template <typename T>
WAVALIGN_INLINE SoftmaxSums<T> no_logits() {
  return {-T(INFINITY), T(0), T(0)};
}

// Replaces -inf by an x with e^x = 0 in float and double, because 0 * -inf is NaN. It may drop a
// NaN: e^x still propagates it.
template <typename T>
WAVALIGN_INLINE T finite_exponent(T x) {
  return std::fmax(x, T(-1000));
}

// What to subtract from logits whose max is `top`. If all ids are banned, top is -inf, and
// -inf - -inf would be NaN.
template <typename T>
WAVALIGN_INLINE T origin(T top) {
  return top == -T(INFINITY) ? T(0) : top;
}

// The same sums relative to another `top`, which is at least their own. Exp is a functor for e^x of
// the kernel's choice.
template <typename Exp, typename T>
WAVALIGN_INLINE SoftmaxSums<T> measured_from(T top, const SoftmaxSums<T>& sums) {
  const T shift = finite_exponent(sums.top - origin(top));
  const T factor = Exp()(shift);
  return {top, factor * sums.sum, factor * (sums.weighted + shift * sums.sum)};
}

template <typename Exp, typename T>
WAVALIGN_INLINE SoftmaxSums<T> merged(const SoftmaxSums<T>& a, const SoftmaxSums<T>& b) {
  const T top = std::fmax(a.top, b.top);
  const SoftmaxSums<T> left = measured_from<Exp>(top, a);
  const SoftmaxSums<T> right = measured_from<Exp>(top, b);
  return {top, left.sum + right.sum, left.weighted + right.weighted};
}

// Adds a few logits to `sums`. They are summed on their own first, because one long chain of
// additions would round more.
template <typename Exp, int count, typename T>
WAVALIGN_INLINE SoftmaxSums<T> with_logits(const SoftmaxSums<T>& sums, const T (&z)[count]) {
  T top = sums.top;
  for (int j = 0; j < count; ++j) top = std::fmax(top, z[j]);
  const SoftmaxSums<T> before = measured_from<Exp>(top, sums);
  const T from = origin(top);
  T sum = 0, weighted = 0;
  for (int j = 0; j < count; ++j) {
    const T below = z[j] - from;
    const T e = Exp()(below);
    sum += e;
    weighted += e * finite_exponent(below);
  }
  return {top, before.sum + sum, before.weighted + weighted};
}

// The results of a row.
template <typename T>
struct RowSummary {
  T top;
  T log_sum;  // log sum e^(z - top); not added to top, which may be so large that it rounds it away
  T logp;
  T entropy;
};

template <typename T>
WAVALIGN_INLINE RowSummary<T> same_everywhere(T value) {
  return {value, value, value, value};
}

// `at_target` is the target's logit.
template <typename T>
WAVALIGN_INLINE RowSummary<T> summary(const SoftmaxSums<T>& sums, T at_target) {
  RowSummary<T> row;
  row.log_sum = std::log(sums.sum);
  // A NaN logit makes all results NaN.
  row.top = row.log_sum == row.log_sum ? sums.top : row.log_sum;
  // Rounding must not make log p positive or the entropy negative.
  row.logp = at_most(at_target - row.top - row.log_sum, T(0));
  row.entropy = at_least(row.log_sum - sums.weighted / sums.sum, T(0));
  return row;
}

// The coefficients of one token in the hybrid loss. If a coefficient is 0, its term is 0, even if
// the other numbers of the term are NaN.
template <typename T>
struct TokenTerms {
  T policy_coef;
  T advantage;
  T kl_coef;
  T anchor_coef;
  T old_logp;  // if has_old; otherwise the ratio is 1
  T ref_logp;  // if has_ref; otherwise there is no KL term
  bool has_old;
  bool has_ref;
};

// Bounds of the ratio; low = -infinity switches clipping off.
template <typename T>
struct ClipBounds {
  T low;
  T high;
};

// d/dlogp of min(ratio A, clip(ratio) A) with ratio = e^(logp - old_logp), linear above 20 nats.
template <typename T>
WAVALIGN_INLINE T surrogate_slope(T logp, const TokenTerms<T>& terms, const ClipBounds<T>& clip) {
  const T excess = terms.has_old ? logp - terms.old_logp : T(0);
  const T slope = std::exp(at_most(excess, Linear<T>::from));
  if (clip.low == -T(INFINITY)) return slope * terms.advantage;
  const T beyond = at_least(excess - Linear<T>::from, T(0));
  const T ratio = slope + Linear<T>::slope * beyond;
  const T clipped = at_most(at_least(ratio, clip.low), clip.high) * terms.advantage;
  return ratio * terms.advantage <= clipped ? slope * terms.advantage : T(0);
}

// dL/dlogp of the hybrid loss: policy gradient, k3 estimate of the KL divergence, and anchor.
template <typename T>
WAVALIGN_INLINE T token_gradient(T logp, const TokenTerms<T>& terms, const ClipBounds<T>& clip) {
  T g = -terms.anchor_coef;
  if (terms.policy_coef > T(0)) g -= terms.policy_coef * surrogate_slope(logp, terms, clip);
  if (terms.has_ref && terms.kl_coef > T(0)) {
    g -= terms.kl_coef * std::expm1(at_most(terms.ref_logp - logp, Linear<T>::from));
  }
  return g;
}

// The derivatives of the loss by the results of a row.
template <typename T>
struct RowGrads {
  T logp;
  T entropy;
  T lse;
};

template <typename T>
WAVALIGN_INLINE bool any(const RowGrads<T>& grads) {
  return grads.logp != T(0) || grads.entropy != T(0) || grads.lse != T(0);
}

// p (log p + entropy), 0 where p is: there log p may be -inf.
template <typename T>
WAVALIGN_INLINE T entropy_term(T p, T logp, T entropy) {
  return p > T(0) ? p * (logp + entropy) : T(0);
}

// dL/dz of a logit with log-probability `logp` that is not the target's.
template <typename Exp, typename T>
WAVALIGN_INLINE T logit_gradient(T logp, const RowGrads<T>& grads, T entropy) {
  const T p = Exp()(logp);
  const T slope = (grads.lse - grads.logp) * p;
  return grads.entropy == T(0) ? slope : slope - grads.entropy * entropy_term(p, logp, entropy);
}

// dL/dz of the target's logit: (lse - g) p + g, without the cancellation for p near 1.
template <typename T>
WAVALIGN_INLINE T target_gradient(const RowSummary<T>& row, const RowGrads<T>& grads) {
  const T p = std::exp(row.logp);
  return grads.lse * p - grads.logp * std::expm1(row.logp) -
         grads.entropy * entropy_term(p, row.logp, row.entropy);
}

}  // namespace wavalign

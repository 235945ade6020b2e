// Whether a hand-declared function pointer can stand for a real one.
#pragma once
#include <type_traits>

namespace meshwork::cuda::abi {

// As many parameters, of the same sizes and kinds: that is all that a call through a pointer can go wrong in.
template <class Ours, class Theirs>
struct Alike : std::false_type {};
template <class A, class B>
constexpr bool sameKind =
    (std::is_void_v<A> && std::is_void_v<B>) || std::is_floating_point_v<A> == std::is_floating_point_v<B>;
template <class R, class... A, class S, class... B>
  requires(sizeof...(A) == sizeof...(B))
struct Alike<R (*)(A...), S (*)(B...)>
    : std::bool_constant<sizeof(R) == sizeof(S) && ((sizeof(A) == sizeof(B) && sameKind<A, B>)&&...)> {};

template <class Ours, class Theirs>
constexpr bool alike = Alike<Ours, Theirs>::value;

}  // namespace meshwork::cuda::abi

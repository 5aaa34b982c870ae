// FEWBIT_CHECK(condition) << "what was expected": for what only a bug of ours can break. A failure
// prints file:line, the expression and the message to stderr and aborts; whatever a client, a file
// or a config can cause is an absl::Status instead. A passing check costs one branch and evaluates
// nothing of the message.
#pragma once

#include <ostream>
#include <sstream>
#include <type_traits>

namespace fewbit::internal {

// Collects the message of one failed check and aborts at the end of the full expression.
// Thread-safe: one per failure.
class CheckFailure {
 public:
  CheckFailure(const char* file, int line, const char* expression);
  [[noreturn]] ~CheckFailure();
  CheckFailure(const CheckFailure&) = delete;
  CheckFailure& operator=(const CheckFailure&) = delete;

  std::ostream& stream() { return message_; }

 private:
  const char* const file_;
  const int line_;
  const char* const expression_;
  std::ostringstream message_;
};

// Turns the stream into void, so that both branches of the macro's ?: have one type. `&` binds
// looser than `<<`.
struct CheckVoidify {
  void operator&(std::ostream&) const {}
};

template <typename T>
void PrintCheckValue(std::ostream& out, const T& value) {
  if constexpr (requires { out << value; }) {
    out << value;
  } else if constexpr (std::is_enum_v<T>) {
    out << static_cast<long long>(value);
  } else {
    out << "(unprintable)";
  }
}

template <typename A, typename B>
std::ostream& PrintCheckValues(std::ostream& out, const A& a, const B& b) {
  out << "(";
  PrintCheckValue(out, a);
  out << " vs ";
  PrintCheckValue(out, b);
  return out << ") ";
}

}  // namespace fewbit::internal

#define FEWBIT_CHECK(condition)                       \
  (__builtin_expect(static_cast<bool>(condition), 1)) \
      ? static_cast<void>(0)                          \
      : ::fewbit::internal::CheckVoidify() &          \
            ::fewbit::internal::CheckFailure(__FILE__, __LINE__, #condition).stream()

// The comparing forms print both operands; these are evaluated a second time when the check fails,
// so keep them free of effects.
#define FEWBIT_CHECK_OP(a, op, b)                                                                 \
  (__builtin_expect(static_cast<bool>((a)op(b)), 1))                                              \
      ? static_cast<void>(0)                                                                      \
      : ::fewbit::internal::CheckVoidify() &                                                      \
            ::fewbit::internal::PrintCheckValues(                                                 \
                ::fewbit::internal::CheckFailure(__FILE__, __LINE__, #a " " #op " " #b).stream(), \
                a, b)

#define FEWBIT_CHECK_EQ(a, b) FEWBIT_CHECK_OP(a, ==, b)
#define FEWBIT_CHECK_NE(a, b) FEWBIT_CHECK_OP(a, !=, b)
#define FEWBIT_CHECK_LT(a, b) FEWBIT_CHECK_OP(a, <, b)
#define FEWBIT_CHECK_LE(a, b) FEWBIT_CHECK_OP(a, <=, b)
#define FEWBIT_CHECK_GT(a, b) FEWBIT_CHECK_OP(a, >, b)
#define FEWBIT_CHECK_GE(a, b) FEWBIT_CHECK_OP(a, >=, b)

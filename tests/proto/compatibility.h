// Whether clients built against an older version of a protocol can talk to a newer one.
#pragma once

#include <google/protobuf/descriptor.pb.h>

#include <string>
#include <vector>

namespace fewbit::testing {

// What `now` breaks for a client of `before`, one line each, with the full name of what it is. A
// client breaks when a message, enum, service, method, field or value it knows is gone or called
// something else, or when a field's number, type, label or oneof, a value's number, or a method's
// types and streaming changed, or when a number that was reserved is in use. Additions break
// nothing.
std::vector<std::string> Breaks(const google::protobuf::FileDescriptorSet& before,
                                const google::protobuf::FileDescriptorSet& now);

}  // namespace fewbit::testing

#include "tests/proto/compatibility.h"

#include <map>

#include "absl/strings/str_cat.h"

namespace fewbit::testing {
namespace {

using google::protobuf::DescriptorProto;
using google::protobuf::EnumDescriptorProto;
using google::protobuf::FieldDescriptorProto;
using google::protobuf::FileDescriptorSet;
using google::protobuf::MethodDescriptorProto;
using google::protobuf::ServiceDescriptorProto;

// Everything of a set by its full name.
struct Definitions {
  std::map<std::string, const DescriptorProto*> messages;
  std::map<std::string, const EnumDescriptorProto*> enums;
  std::map<std::string, const ServiceDescriptorProto*> services;

  explicit Definitions(const FileDescriptorSet& set) {
    for (const auto& file : set.file()) {
      const std::string package = file.package().empty() ? "" : file.package() + ".";
      for (const auto& message : file.message_type()) Add(package, message);
      for (const auto& item : file.enum_type()) enums[package + item.name()] = &item;
      for (const auto& service : file.service()) services[package + service.name()] = &service;
    }
  }

 private:
  void Add(const std::string& scope, const DescriptorProto& message) {
    const std::string name = scope + message.name();
    messages[name] = &message;
    for (const auto& nested : message.nested_type()) Add(name + ".", nested);
    for (const auto& item : message.enum_type()) enums[name + "." + item.name()] = &item;
  }
};

std::string TypeOf(const FieldDescriptorProto& field) {
  const std::string type = FieldDescriptorProto::Type_Name(field.type());
  return field.type_name().empty() ? type : absl::StrCat(type, " ", field.type_name());
}

std::string LabelOf(const FieldDescriptorProto& field) {
  return field.proto3_optional() ? "optional" : FieldDescriptorProto::Label_Name(field.label());
}

std::string OneofOf(const DescriptorProto& message, const FieldDescriptorProto& field) {
  if (!field.has_oneof_index() || field.proto3_optional()) return "none";
  return message.oneof_decl(field.oneof_index()).name();
}

class Comparison {
 public:
  Comparison(const FileDescriptorSet& before, const FileDescriptorSet& now)
      : before_(before), now_(now) {}

  std::vector<std::string> Run() {
    for (const auto& [name, message] : before_.messages) {
      if (const auto* now = Find(now_.messages, name, "message")) Compare(name, *message, *now);
    }
    for (const auto& [name, item] : before_.enums) {
      if (const auto* now = Find(now_.enums, name, "enum")) Compare(name, *item, *now);
    }
    for (const auto& [name, service] : before_.services) {
      if (const auto* now = Find(now_.services, name, "service")) Compare(name, *service, *now);
    }
    return breaks_;
  }

 private:
  template <typename T>
  const T* Find(const std::map<std::string, const T*>& items, const std::string& name,
                const char* kind) {
    const auto found = items.find(name);
    if (found != items.end()) return found->second;
    breaks_.push_back(absl::StrCat(kind, " ", name, " is gone"));
    return nullptr;
  }

  void Same(const std::string& name, const char* what, const std::string& before,
            const std::string& now) {
    if (before == now) return;
    breaks_.push_back(absl::StrCat(name, ": ", what, " was ", before, ", is ", now));
  }

  void Compare(const std::string& name, const DescriptorProto& before, const DescriptorProto& now) {
    std::map<int, const FieldDescriptorProto*> fields;
    for (const auto& field : now.field()) fields[field.number()] = &field;
    for (const auto& field : before.field()) {
      const std::string full = absl::StrCat(name, ".", field.name());
      const auto found = fields.find(field.number());
      if (found == fields.end()) {
        breaks_.push_back(absl::StrCat("field ", full, " = ", field.number(), " is gone"));
        continue;
      }
      Same(full, "the name", field.name(), found->second->name());
      Same(full, "the type", TypeOf(field), TypeOf(*found->second));
      Same(full, "the label", LabelOf(field), LabelOf(*found->second));
      Same(full, "the oneof", OneofOf(before, field), OneofOf(now, *found->second));
    }
    for (const auto& range : before.reserved_range()) {
      for (const auto& [number, field] : fields) {
        if (number < range.start() || number >= range.end()) continue;
        breaks_.push_back(absl::StrCat(name, ".", field->name(), " uses the reserved ", number));
      }
    }
  }

  void Compare(const std::string& name, const EnumDescriptorProto& before,
               const EnumDescriptorProto& now) {
    std::map<std::string, int> values;
    for (const auto& value : now.value()) values[value.name()] = value.number();
    for (const auto& value : before.value()) {
      const std::string full = absl::StrCat(name, ".", value.name());
      const auto found = values.find(value.name());
      if (found == values.end()) {
        breaks_.push_back(absl::StrCat("value ", full, " is gone"));
      } else {
        Same(full, "the number", absl::StrCat(value.number()), absl::StrCat(found->second));
      }
    }
  }

  void Compare(const std::string& name, const ServiceDescriptorProto& before,
               const ServiceDescriptorProto& now) {
    std::map<std::string, const MethodDescriptorProto*> methods;
    for (const auto& method : now.method()) methods[method.name()] = &method;
    const auto kind = [](bool streams, const std::string& type) {
      return absl::StrCat(streams ? "stream " : "", type);
    };
    for (const auto& method : before.method()) {
      const std::string full = absl::StrCat(name, ".", method.name());
      const auto* found = Find(methods, method.name(), absl::StrCat("method of ", name).c_str());
      if (found == nullptr) continue;
      Same(full, "the request", kind(method.client_streaming(), method.input_type()),
           kind(found->client_streaming(), found->input_type()));
      Same(full, "the response", kind(method.server_streaming(), method.output_type()),
           kind(found->server_streaming(), found->output_type()));
    }
  }

  const Definitions before_;
  const Definitions now_;
  std::vector<std::string> breaks_;
};

}  // namespace

std::vector<std::string> Breaks(const FileDescriptorSet& before, const FileDescriptorSet& now) {
  return Comparison(before, now).Run();
}

}  // namespace fewbit::testing

# One .deb per component; what they depend on follows from the libraries they are linked to.
set(CPACK_GENERATOR DEB)
set(CPACK_PACKAGE_NAME fewbit)
set(CPACK_PACKAGE_VERSION ${PROJECT_VERSION})
set(CPACK_PACKAGE_VENDOR fewbit)
set(FEWBIT_PACKAGE_CONTACT "The fewbit authors <root@localhost>" CACHE STRING "Maintainer of the Debian packages")
set(CPACK_PACKAGE_CONTACT ${FEWBIT_PACKAGE_CONTACT})
set(CPACK_PACKAGE_DESCRIPTION_SUMMARY "language model server with 2-, 4- and 16-bit weights")
set(CPACK_RESOURCE_FILE_LICENSE ${CMAKE_SOURCE_DIR}/LICENSE)
set(CPACK_PACKAGING_INSTALL_PREFIX ${CMAKE_INSTALL_PREFIX})
set(CPACK_STRIP_FILES ON)
set(CPACK_INSTALL_DEFAULT_DIRECTORY_PERMISSIONS
  OWNER_READ OWNER_WRITE OWNER_EXECUTE GROUP_READ GROUP_EXECUTE WORLD_READ WORLD_EXECUTE)
set(CPACK_COMPONENTS_ALL server client tools dev model)
set(CPACK_DEB_COMPONENT_INSTALL ON)
set(CPACK_DEBIAN_FILE_NAME DEB-DEFAULT)
set(CPACK_DEBIAN_PACKAGE_SHLIBDEPS ON)
set(CPACK_DEBIAN_PACKAGE_SECTION net)
set(CPACK_DEBIAN_PACKAGE_PRIORITY optional)
set(CPACK_DEBIAN_PACKAGE_CONTROL_STRICT_PERMISSION ON)

set(CPACK_DEBIAN_SERVER_PACKAGE_NAME fewbit-server)
set(CPACK_DEBIAN_SERVER_PACKAGE_SUGGESTS "fewbit-client, fewbit-tools, fewbit-demo-model")
set(CPACK_DEBIAN_SERVER_PACKAGE_CONTROL_EXTRA
  "${CMAKE_CURRENT_SOURCE_DIR}/conffiles;${CMAKE_CURRENT_SOURCE_DIR}/postinst;${CMAKE_CURRENT_SOURCE_DIR}/prerm;${CMAKE_CURRENT_SOURCE_DIR}/postrm")
set(CPACK_DEBIAN_SERVER_DESCRIPTION
"The server: batches requests continuously, streams tokens over gRPC, and
counts what they cost. Its systemd unit runs it under a user of its own, with
the flags in /etc/fewbit/server.flags.")

set(CPACK_DEBIAN_CLIENT_PACKAGE_NAME fewbit-client)
set(CPACK_DEBIAN_CLIENT_DESCRIPTION
"The client: streams completions to the terminal, inspects a server, and puts
load on it.")

set(CPACK_DEBIAN_TOOLS_PACKAGE_NAME fewbit-tools)
set(CPACK_DEBIAN_TOOLS_DESCRIPTION
"The offline tools: fewbit-quantize stores the weights of a checkpoint in 2
and 4 bits, fewbit-tune makes up for much of what that costs, fewbit-eval
measures it, fewbit-plan says what fits on a GPU.")

set(CPACK_DEBIAN_DEV_PACKAGE_NAME fewbit-dev)
set(CPACK_DEBIAN_DEV_PACKAGE_SECTION libdevel)
set(CPACK_DEBIAN_DEV_PACKAGE_DEPENDS "libgrpc++-dev, libprotobuf-dev")
set(CPACK_DEBIAN_DEV_DESCRIPTION
"The protocol: .proto files, descriptor set, and a static library with headers
and a CMake package for clients in C++.")

set(CPACK_DEBIAN_MODEL_PACKAGE_NAME fewbit-demo-model)
set(CPACK_DEBIAN_MODEL_PACKAGE_ARCHITECTURE all)
set(CPACK_DEBIAN_MODEL_PACKAGE_SECTION misc)
set(CPACK_DEBIAN_MODEL_DESCRIPTION
"A demo model of 29 million parameters that shows a server at work.")

include(CPack)

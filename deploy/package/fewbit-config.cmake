# find_package(fewbit): the target fewbit::proto, messages and stubs of fewbit.v1.GenerationService.
include(CMakeFindDependencyMacro)
find_dependency(Threads)
find_dependency(Protobuf)
find_dependency(gRPC)
include(${CMAKE_CURRENT_LIST_DIR}/fewbit-targets.cmake)

//! ONNX Runtime: where its library is found, which devices it can use here, and sessions on one of them. What
//! runs models, and nothing of what they mean.

pub mod library;
mod pins;
mod driver;
mod cuda;
mod device;
mod assignment;
mod graph;
mod session;
mod pieces;
mod numerics;

pub use assignment::NodeCounts;
pub use cuda::{CudaLibrary, missing_libraries, needed_libraries};
pub use device::{
    Device, DeviceError, GpuSet, Gpus, Place, Provider, UnknownDevice, library_names, requirements,
};
pub use driver::{Driver, DriverError, Gpu};
pub use graph::{Element, GraphBytes, Operand};
pub use numerics::numerics;
pub use pieces::in_pieces;
pub use pins::{Pin, pin};
pub use session::{OpenSession, Products, SessionOptions, engine_folder, open, open_bytes};

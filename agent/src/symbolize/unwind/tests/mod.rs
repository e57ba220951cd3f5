mod code;
mod files;
mod kernel;

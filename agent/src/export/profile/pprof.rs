//! pprof: what `go tool pprof`, Parca and Pyroscope read.

use std::collections::{BTreeMap, HashMap};
use std::io::Write;
use std::sync::Arc;

use anyhow::{Context, Result};
use flate2::Compression;
use flate2::write::GzEncoder;
use prost::Message;

use super::proto;
use super::{Label, Profile, Sample, frame_name};
use crate::aggregate::{Frame, StackKind};

/// Profiles of the same thing and time as gzipped protobuf: each has a value of its own in every sample.
pub fn pprof(profiles: &[Profile]) -> Result<Vec<u8>> {
    let message = message(profiles);
    let mut out = GzEncoder::new(Vec::new(), Compression::fast());
    out.write_all(&message.encode_to_vec())
        .context("compress a pprof profile")?;
    out.finish().context("compress a pprof profile")
}

type ModuleKey = (Arc<str>, Option<Arc<str>>);
type LocationKey = (u64, u64, Vec<(u64, i64)>);

#[derive(Default)]
struct Builder {
    out: proto::Profile,
    strings: HashMap<String, i64>,
    mappings: HashMap<ModuleKey, u64>,
    functions: HashMap<(i64, i64), u64>,
    locations: HashMap<LocationKey, u64>,
}

pub(super) fn message(profiles: &[Profile]) -> proto::Profile {
    let mut builder = Builder::default();
    builder.string("");
    for profile in profiles {
        let (name, unit) = profile.sample_type();
        let value_type = proto::ValueType {
            r#type: builder.string(name),
            unit: builder.string(unit),
        };
        builder.out.sample_type.push(value_type);
    }
    let Some(first) = profiles.first() else {
        return builder.out;
    };
    let value_type = builder.out.sample_type.first().copied();
    builder.out.default_sample_type = value_type.map_or(0, |value_type| value_type.r#type);
    builder.out.period_type = value_type;
    builder.out.period = first.period;
    builder.out.time_nanos = i64::try_from(first.start_unix_ns).unwrap_or(i64::MAX);
    builder.out.duration_nanos = i64::try_from(first.duration_ns).unwrap_or(i64::MAX);
    builder.out.comment = [
        format!("service: {}", first.title()),
        format!(
            "tieback {}: sampled stacks, scaled to {} totals",
            env!("CARGO_PKG_VERSION"),
            match first.kind {
                // /api/v1/allocations says which; Go's own profile is an estimate, too.
                StackKind::Alloc | StackKind::AllocObjects | StackKind::AllocLive =>
                    "exact (mode full) or estimated (mode duty)",
                _ => "exact",
            }
        ),
    ]
    .iter()
    .map(|comment| builder.string(comment))
    .collect();
    // Readers take the first mapping for the main program.
    if let Some(frame) = profiles.iter().find_map(main_frame) {
        builder.mapping(frame);
    }
    let mut samples: BTreeMap<(Vec<u64>, &[Label]), Vec<i64>> = BTreeMap::new();
    for (at, profile) in profiles.iter().enumerate() {
        for sample in profile.samples.iter().filter(|sample| sample.value != 0) {
            let values = samples
                .entry((builder.locations(&sample.stack.frames), &*sample.labels))
                .or_insert_with(|| vec![0; profiles.len()]);
            if let Some(sum) = values.get_mut(at) {
                *sum = sum.saturating_add(sample.value);
            }
        }
    }
    builder.out.sample = samples
        .into_iter()
        .map(|((location_id, labels), value)| proto::Sample {
            location_id,
            value,
            label: builder.labels(labels),
        })
        .collect();
    builder.out
}

/// A frame of the module that owns most of the values.
fn main_frame(profile: &Profile) -> Option<&Frame> {
    let mut modules: BTreeMap<&str, (i64, &Frame)> = BTreeMap::new();
    for Sample { stack, value, .. } in &profile.samples {
        let owner =
            |frame: &&Arc<Frame>| !frame.kernel && frame.function.as_ref() == Some(&stack.owner.function);
        if let Some(frame) = stack.frames.iter().find(owner) {
            let sum = &mut modules.entry(&frame.module).or_insert((0, frame)).0;
            *sum = sum.saturating_add(*value);
        }
    }
    modules
        .into_values()
        .max_by_key(|(value, _)| *value)
        .map(|(_, frame)| frame)
}

impl Builder {
    fn string(&mut self, text: &str) -> i64 {
        if let Some(index) = self.strings.get(text) {
            return *index;
        }
        let index = i64::try_from(self.out.string_table.len()).unwrap_or(0);
        self.out.string_table.push(text.to_owned());
        self.strings.insert(text.to_owned(), index);
        index
    }

    /// What `go tool pprof -tags` and `-tagfocus` know a sample by.
    fn labels(&mut self, labels: &[Label]) -> Vec<proto::Label> {
        let label = |(key, value): &Label| proto::Label {
            key: self.string(key),
            str: self.string(value),
        };
        labels.iter().map(label).collect()
    }

    /// Ids of the locations of a stack, innermost first. Inlined frames share the location of the next outer frame
    /// that is not inlined.
    fn locations(&mut self, frames: &[Arc<Frame>]) -> Vec<u64> {
        let mut ids = Vec::with_capacity(frames.len());
        let mut from = 0;
        for (index, frame) in frames.iter().enumerate() {
            let next_differs = frames
                .get(index + 1)
                .is_none_or(|next| next.address != frame.address);
            if !frame.inlined || next_differs {
                ids.push(self.location(&frames[from..=index]));
                from = index + 1;
            }
        }
        ids
    }

    fn location(&mut self, frames: &[Arc<Frame>]) -> u64 {
        let Some(frame) = frames.last() else { return 0 };
        let mapping = self.mapping(frame);
        let lines: Vec<_> = frames.iter().filter_map(|frame| self.line(frame)).collect();
        if let Some(mapping) = usize::try_from(mapping)
            .ok()
            .and_then(|id| self.out.mapping.get_mut(id - 1))
        {
            mapping.memory_limit = mapping.memory_limit.max(frame.address.saturating_add(1));
            mapping.has_functions |= !lines.is_empty();
            mapping.has_filenames |= frames.iter().any(|frame| frame.file.is_some());
            mapping.has_line_numbers |= frames.iter().any(|frame| frame.line != 0);
            mapping.has_inline_frames |= frames.len() > 1;
        }
        let next = self.locations.len() as u64 + 1;
        let key = (mapping, frame.address, lines.clone());
        let id = *self.locations.entry(key).or_insert(next);
        if id == next {
            let line = lines
                .into_iter()
                .map(|(function_id, line)| proto::Line { function_id, line })
                .collect();
            self.out.location.push(proto::Location {
                id,
                mapping_id: mapping,
                address: frame.address,
                line,
            });
        }
        id
    }

    fn line(&mut self, frame: &Frame) -> Option<(u64, i64)> {
        // A location without a line is shown by its address: right for code whose symbols are elsewhere.
        if frame.function.is_none() && !frame.kernel && frame.build_id.is_some() {
            return None;
        }
        let name = self.string(&frame_name(frame));
        let file = self.string(frame.file.as_deref().unwrap_or_default());
        let next = self.functions.len() as u64 + 1;
        let id = *self.functions.entry((name, file)).or_insert(next);
        if id == next {
            self.out.function.push(proto::Function {
                id,
                name,
                system_name: name,
                filename: file,
            });
        }
        Some((id, i64::from(frame.line)))
    }

    fn mapping(&mut self, frame: &Frame) -> u64 {
        let key = (Arc::clone(&frame.module), frame.build_id.clone());
        if let Some(id) = self.mappings.get(&key) {
            return *id;
        }
        let id = self.mappings.len() as u64 + 1;
        let mapping = proto::Mapping {
            id,
            filename: self.string(&frame.module),
            build_id: self.string(frame.build_id.as_deref().unwrap_or_default()),
            ..proto::Mapping::default()
        };
        self.out.mapping.push(mapping);
        self.mappings.insert(key, id);
        id
    }
}

//! What a scheduler says to a process in its environment: that it is one of several that were started together, and which.
//! Slurm's `SLURM_*`, and the `RANK` family that PyTorch's launchers made common. Pure.
//!
//! Invariants
//! - **A1** one process of an allocation is the head node: the one of rank 0. The others are told where it is through a file.
//! - **A2** nothing is guessed: a value that cannot be read, and two that contradict each other, are errors with name and value.
//!
//! Files: `nodelist` Slurm's compressed lists of names.
pub mod nodelist;

use std::num::NonZeroU16;
use thiserror::Error;

/// Processes that one allocation may have.
const MOST: u32 = 65_536;

/// A variable that cannot be made sense of.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("{name}={value:?} {why}; correct it, or start with --alone to take no notice of the scheduler's variables")]
pub struct AllocationError {
    /// The variable.
    pub name: &'static str,
    /// What it is.
    pub value: String,
    /// What is wrong with it.
    pub why: String,
}

/// A process's place among those that were started together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Allocation {
    /// Which of them, from 0.
    pub rank: u32,
    /// How many there are: 2 or more.
    pub size: u32,
    /// The same text in all of them, and another one in every other allocation, as far as the scheduler says.
    pub name: String,
    /// Where the head node is to be found, and the port it is to listen on.
    pub master: (Option<String>, Option<NonZeroU16>),
    /// Graphics processors of this host that belong to the allocation.
    pub gpus: Option<u16>,
    /// Which of the processes on this host, from 0.
    pub local_rank: Option<u16>,
    /// Processor cores of each process.
    pub cpus: Option<NonZeroU16>,
    /// What was recognised from which variable, a line each, for people.
    pub recognised: Vec<String>,
}

impl Allocation {
    /// Whether this process is to be the head node (A1).
    #[must_use]
    pub fn leads(&self) -> bool {
        self.rank == 0
    }

    /// Reads the environment. `None` where no scheduler speaks, and where it started this process alone.
    ///
    /// # Errors
    /// A2.
    pub fn recognise(variable: impl Fn(&str) -> Option<String>) -> Result<Option<Self>, AllocationError> {
        let mut reader = Reader { variable: &variable, recognised: Vec::new() };
        let slurm = reader.place("SLURM_PROCID", "SLURM_NTASKS")?;
        let ranked = reader.place("RANK", "WORLD_SIZE")?;
        let (rank, size) = match (slurm, ranked) {
            (Some(slurm), Some(ranked)) => reader.agree(slurm, ranked)?,
            (Some(place), None) | (None, Some(place)) => place,
            (None, None) => return Ok(None),
        };
        if size == 1 {
            return Ok(None);
        }
        let role = if rank == 0 { "is the head node" } else { "joins the head node" };
        reader.recognised.insert(0, format!("one of {size} processes that were started together: rank {rank}, which {role}"));
        reader.nodes()?;
        let master = (reader.text("MASTER_ADDR"), reader.master_port()?);
        let gpus = reader.number("SLURM_GPUS_ON_NODE", u32::from(u16::MAX))?.and_then(|n| u16::try_from(n).ok());
        let local_rank = reader.number("LOCAL_RANK", size.min(u32::from(u16::MAX)) - 1)?.and_then(|n| u16::try_from(n).ok());
        let cpus = reader.number("SLURM_CPUS_PER_TASK", u32::from(u16::MAX))?;
        let cpus = cpus.and_then(|n| u16::try_from(n).ok()).and_then(NonZeroU16::new);
        let name = reader.name(size, &master);
        Ok(Some(Self { rank, size, name, master, gpus, local_rank, cpus, recognised: reader.recognised }))
    }
}

struct Reader<'a> {
    variable: &'a dyn Fn(&str) -> Option<String>,
    recognised: Vec<String>,
}

fn wrong(name: &'static str, value: impl ToString, why: impl ToString) -> AllocationError {
    AllocationError { name, value: value.to_string(), why: why.to_string() }
}

impl Reader<'_> {
    /// A variable that says something.
    fn get(&self, name: &str) -> Option<String> {
        (self.variable)(name).map(|value| value.trim().to_owned()).filter(|value| !value.is_empty())
    }

    fn text(&mut self, name: &str) -> Option<String> {
        let value = self.get(name)?;
        self.recognised.push(format!("{name}={value}"));
        Some(value)
    }

    fn number(&mut self, name: &'static str, most: u32) -> Result<Option<u32>, AllocationError> {
        let Some(value) = self.text(name) else { return Ok(None) };
        let number = value.parse().ok().filter(|n| *n <= most);
        number.map(Some).ok_or_else(|| wrong(name, value, format!("is no whole number from 0 to {most}")))
    }

    /// Rank and number of processes; neither, or both.
    fn place(&mut self, rank: &'static str, size: &'static str) -> Result<Option<(u32, u32)>, AllocationError> {
        let before = self.recognised.len();
        match (self.number(rank, MOST - 1)?, self.number(size, MOST)?) {
            (Some(r), Some(n)) if r < n => Ok(Some((r, n))),
            (Some(r), Some(n)) => Err(wrong(rank, r, format!("contradicts {size}={n}: ranks are 0 to {}", n.saturating_sub(1)))),
            (Some(r), None) => Err(wrong(rank, r, format!("stands without {size}, which says of how many"))),
            // In a shell of an allocation Slurm says how many tasks there may be, and starts none.
            (None, _) => {
                self.recognised.truncate(before);
                Ok(None)
            }
        }
    }

    /// Slurm started the launcher that set the others: they must say the same.
    fn agree(&self, slurm: (u32, u32), ranked: (u32, u32)) -> Result<(u32, u32), AllocationError> {
        if slurm.0 != ranked.0 {
            return Err(wrong("RANK", ranked.0, format!("contradicts SLURM_PROCID={}", slurm.0)));
        }
        if slurm.1 != ranked.1 {
            return Err(wrong("WORLD_SIZE", ranked.1, format!("contradicts SLURM_NTASKS={}", slurm.1)));
        }
        Ok(slurm)
    }

    /// The names of the allocation's hosts, and which of them this is.
    fn nodes(&mut self) -> Result<(), AllocationError> {
        let Some(list) = self.get("SLURM_JOB_NODELIST") else { return Ok(()) };
        let names = nodelist::expand(&list).map_err(|why| wrong("SLURM_JOB_NODELIST", &list, why))?;
        let text = match self.number("SLURM_NODEID", MOST)? {
            Some(id) => match names.get(id as usize) {
                Some(name) => format!("SLURM_JOB_NODELIST={list}: {} hosts, this is {name}", names.len()),
                None => {
                    let why = format!("contradicts SLURM_JOB_NODELIST={list}, which has {} hosts", names.len());
                    return Err(wrong("SLURM_NODEID", id, why));
                }
            },
            None => format!("SLURM_JOB_NODELIST={list}: {} hosts", names.len()),
        };
        self.recognised.push(text);
        Ok(())
    }

    fn master_port(&mut self) -> Result<Option<NonZeroU16>, AllocationError> {
        let port = self.number("MASTER_PORT", u32::from(u16::MAX))?;
        let checked = |port: u32| u16::try_from(port).ok().and_then(NonZeroU16::new);
        port.map(|port| checked(port).ok_or_else(|| wrong("MASTER_PORT", port, "is no port: they are 1 to 65535"))).transpose()
    }

    fn name(&self, size: u32, master: &(Option<String>, Option<NonZeroU16>)) -> String {
        let slurm = ["SLURM_JOB_ID", "SLURM_STEP_ID"].map(|name| self.get(name));
        match slurm {
            [Some(job), Some(step)] => format!("slurm {job}.{step}"),
            [Some(job), None] => format!("slurm {job}"),
            _ => {
                let port = master.1.map_or_else(String::new, |port| format!(":{port}"));
                format!("{size} at {}{port}", master.0.as_deref().unwrap_or("nowhere"))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    fn recognise(variables: &[(&str, &str)]) -> Result<Option<Allocation>, AllocationError> {
        let variables: BTreeMap<String, String> = variables.iter().map(|(k, v)| ((*k).into(), (*v).into())).collect();
        Allocation::recognise(|name| variables.get(name).cloned())
    }

    const SLURM: [(&str, &str); 8] = [
        ("SLURM_JOB_ID", "17"),
        ("SLURM_STEP_ID", "0"),
        ("SLURM_PROCID", "2"),
        ("SLURM_NTASKS", "3"),
        ("SLURM_NODEID", "2"),
        ("SLURM_JOB_NODELIST", "gpu[01-02],login"),
        ("SLURM_GPUS_ON_NODE", "4"),
        ("SLURM_CPUS_PER_TASK", "16"),
    ];

    #[test]
    fn slurm_and_ranks_are_recognised_with_what_said_it() {
        let slurm = recognise(&SLURM).unwrap().unwrap();
        assert_eq!((slurm.rank, slurm.size, slurm.name.as_str()), (2, 3, "slurm 17.0"));
        assert_eq!((slurm.gpus, slurm.cpus.map(NonZeroU16::get), slurm.leads()), (Some(4), Some(16), false));
        let said = slurm.recognised.join("\n");
        for named in ["rank 2, which joins the head node", "SLURM_PROCID=2", "3 hosts, this is login", "SLURM_GPUS_ON_NODE=4"] {
            assert!(said.contains(named), "{named} is not in {said}");
        }
        let ranked =
            [("RANK", "0"), ("WORLD_SIZE", "2"), ("LOCAL_RANK", "0"), ("MASTER_ADDR", "gpu-1"), ("MASTER_PORT", "29500")];
        let ranked = recognise(&ranked).unwrap().unwrap();
        assert!(ranked.leads() && ranked.name == "2 at gpu-1:29500", "{ranked:?}");
        assert_eq!((ranked.master.0.as_deref(), ranked.master.1.map(NonZeroU16::get)), (Some("gpu-1"), Some(29500)));
        let both = [&SLURM[..], &[("RANK", "2"), ("WORLD_SIZE", "3")]].concat();
        assert_eq!(recognise(&both).unwrap().unwrap().rank, 2, "they agree");
    }

    #[test]
    fn a_process_that_stands_alone_is_left_alone() {
        for alone in [
            &[][..],
            &[("SLURM_PROCID", "0"), ("SLURM_NTASKS", "1"), ("SLURM_JOB_NODELIST", "n1")],
            &[("SLURM_NTASKS", "4"), ("SLURM_JOB_NODELIST", "n[1-4]"), ("SLURM_GPUS_ON_NODE", "many")],
            &[("RANK", "0"), ("WORLD_SIZE", "1"), ("MASTER_PORT", "none")],
            &[("RANK", ""), ("WORLD_SIZE", "")],
        ] {
            assert_eq!(recognise(alone), Ok(None), "{alone:?}");
        }
    }

    #[test]
    fn what_is_malformed_or_contradicts_is_named_with_value_and_remedy() {
        let with = |name: &'static str, value: &'static str| {
            let rest = SLURM.into_iter().filter(|(n, _)| *n != name);
            rest.chain([(name, value)]).collect::<Vec<_>>()
        };
        type Variables<'a> = Vec<(&'a str, &'a str)>;
        let cases: [(Variables<'_>, &str, &str); 11] = [
            (with("SLURM_PROCID", "two"), "SLURM_PROCID=\"two\"", "whole number"),
            (with("SLURM_PROCID", "3"), "SLURM_PROCID=\"3\"", "SLURM_NTASKS=3"),
            (with("SLURM_NTASKS", ""), "SLURM_PROCID=\"2\"", "without SLURM_NTASKS"),
            (with("SLURM_NODEID", "3"), "SLURM_NODEID=\"3\"", "3 hosts"),
            (with("SLURM_JOB_NODELIST", "gpu[1-"), "SLURM_JOB_NODELIST", "bracket"),
            (with("SLURM_GPUS_ON_NODE", "-1"), "SLURM_GPUS_ON_NODE=\"-1\"", "whole number"),
            (with("SLURM_CPUS_PER_TASK", "1e9"), "SLURM_CPUS_PER_TASK", "whole number"),
            (with("RANK", "1"), "RANK=\"1\"", "without WORLD_SIZE"),
            ([with("RANK", "1"), vec![("WORLD_SIZE", "3")]].concat(), "RANK=\"1\"", "SLURM_PROCID=2"),
            ([with("RANK", "2"), vec![("WORLD_SIZE", "4")]].concat(), "WORLD_SIZE=\"4\"", "SLURM_NTASKS=3"),
            (with("MASTER_PORT", "0"), "MASTER_PORT=\"0\"", "1 to 65535"),
        ];
        for (variables, named, why) in cases {
            let error = recognise(&variables).unwrap_err().to_string();
            assert!(error.contains(named) && error.contains(why) && error.contains("--alone"), "{variables:?}: {error}");
        }
    }
}

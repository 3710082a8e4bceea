//! The plug-in: which numbers a write needs, and their reservation.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use rkube_api::field::FieldError;
use rkube_api::kinds::service::{self, families};
use rkube_api::status::{Named, Status};
use serde_json::{Value, json};

use super::pool::{Holder, Pool};
use super::problem::{Failure, Problem, Refusal, address_problem, port_full, port_problem};
use super::{ServicesConfig, ServicesConfigError};
use crate::admission::{Admission, Call, Operation, Step, done};
use crate::engine::random;
use crate::objects::Objects;

/// How many numbers are given out before the memory is made anew: it has
/// numbers of Services that are gone.
const REFRESH_COUNT: usize = 4096;

/// Gives addresses and ports to Services.
#[derive(Debug)]
pub struct ServiceAllocator {
    families: Vec<&'static str>,
    first_port: u16,
    last_port: u16,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    /// In the order of the families.
    addresses: Vec<Pool>,
    ports: Pool,
    /// Numbers given out since the memory was made; `None`: it never was.
    given: Option<usize>,
}

/// One kind of number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// An address of the family with this index.
    Address(usize),
    Port,
}

fn bits(ip: IpAddr) -> u128 {
    match ip {
        IpAddr::V4(ip) => u128::from(ip.to_bits()),
        IpAddr::V6(ip) => ip.to_bits(),
    }
}

/// Size of the part of a range that is left to those who ask by name: a
/// `step`-th of it, between 16 and `most`, and none of a small range.
fn lower_part(size: u128, step: u128, most: u128) -> u128 {
    const LEAST: u128 = 16;
    if size < LEAST {
        return 0;
    }
    (size / step).clamp(LEAST, most)
}

fn address_pool(address: IpAddr, prefix: u8) -> Result<Pool, ServicesConfigError> {
    // Two addresses of IPv4 are the network's and the broadcast's own, one of
    // IPv6 the routers'.
    let (width, own) = match address {
        IpAddr::V4(_) => (32, 2),
        IpAddr::V6(_) => (128, 1),
    };
    let longest = width - 2;
    if prefix == 0 || prefix > longest {
        return Err(ServicesConfigError::Prefix {
            address,
            prefix,
            longest,
        });
    }
    let count = 1_u128 << (width - prefix);
    let base = bits(address) & !(count - 1);
    let size = count - own;
    Ok(Pool::new(base + 1, size, lower_part(size, 16, 256)))
}

impl ServiceAllocator {
    /// An allocator; it reads the Services with the first write.
    ///
    /// # Errors
    /// [`ServicesConfigError`].
    pub fn new(config: &ServicesConfig) -> Result<Self, ServicesConfigError> {
        let families: Vec<&'static str> = config
            .ranges
            .iter()
            .map(|(ip, _)| service::family_of(*ip))
            .collect();
        let distinct: BTreeSet<_> = families.iter().collect();
        if families.is_empty() || distinct.len() != families.len() {
            let count = families.len();
            return Err(ServicesConfigError::Ranges { count });
        }
        let addresses = config.ranges.iter();
        let addresses = addresses
            .map(|(ip, prefix)| address_pool(*ip, *prefix))
            .collect::<Result<_, _>>()?;
        let (first, last) = (*config.node_ports.start(), *config.node_ports.end());
        if first == 0 || first > last {
            return Err(ServicesConfigError::NodePorts { first, last });
        }
        let size = u128::from(last - first) + 1;
        let ports = Pool::new(u128::from(first), size, lower_part(size, 32, 128));
        Ok(Self {
            families,
            first_port: first,
            last_port: last,
            state: Mutex::new(State {
                addresses,
                ports,
                given: None,
            }),
        })
    }

    fn admit_service(&self, call: &mut Call) -> Result<(), Status> {
        let old = Some(&call.old).filter(|old| !old.is_null());
        let service = &mut call.object;
        if let Some(old) = old {
            service::patch_allocated(service, old);
            self.settle(old);
        }
        families::normalize(service, old);
        let name = call.name.clone();
        let invalid = |errors: &[FieldError]| {
            let named = Named {
                group: "",
                resource: "Service",
                name: &name,
            };
            Status::invalid(named, errors)
        };
        families::init(service, old, &self.families).map_err(|errors| invalid(&errors))?;
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let mut work = Work {
            allocator: self,
            state: &mut state,
            objects: &call.objects,
            service: (call.namespace.clone(), call.name.clone()),
            dry_run: call.dry_run,
            reserved: Vec::new(),
            now: Instant::now(),
        };
        work.refresh()?;
        let outcome = work.run(&mut call.object, old);
        // A write that the rules refuse anyway keeps nothing.
        let keeps = outcome.is_ok() && is_valid(&call.object, old);
        if !keeps || call.dry_run {
            work.revert();
        }
        outcome.map_err(|failure| match failure {
            Problem::Invalid(errors) => invalid(&errors),
            Problem::Status(status) => *status,
        })
    }

    /// The write is about to be stored: its numbers are its own under the
    /// name that it has now.
    fn confirm(&self, call: &Call) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let holder = Holder {
            service: (call.namespace.clone(), call.name.clone()),
            reserved: Some(Instant::now()),
        };
        for (kind, number) in self.numbers(&call.object) {
            state.pool(kind).take(number, holder.clone());
        }
    }

    /// A stored Service is about to change or to go: from now on the store
    /// tells whether it has its numbers.
    fn settle(&self, old: &Value) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        for (kind, number) in self.numbers(old) {
            let pool = state.pool(kind);
            if let Some(mut holder) = pool.holder(number).cloned() {
                holder.reserved = None;
                pool.take(number, holder);
            }
        }
    }

    /// All numbers that a Service has.
    fn numbers(&self, service: &Value) -> Vec<(Kind, u128)> {
        let mut numbers = Vec::new();
        for ip in service::spec_strs(service, "clusterIPs") {
            let Ok(ip) = ip.parse::<IpAddr>() else {
                continue;
            };
            if let Some(index) = self.index_of(service::family_of(ip)) {
                numbers.push((Kind::Address(index), bits(ip)));
            }
        }
        let check = service::int(&service["spec"], "healthCheckNodePort");
        for port in service::node_ports(service).into_iter().chain([check]) {
            if let Some(port) = u128::try_from(port).ok().filter(|port| *port != 0) {
                numbers.push((Kind::Port, port));
            }
        }
        numbers
    }

    fn index_of(&self, family: &str) -> Option<usize> {
        self.families.iter().position(|f| *f == family)
    }
}

/// Whether the rules will let the write pass.
fn is_valid(object: &Value, old: Option<&Value>) -> bool {
    let mut object = object.clone();
    if let Some(old) = old {
        service::prepare_update(&mut object, old);
        if !service::validate_update(&object, old).is_empty() {
            return false;
        }
    }
    let mut errors = service::validate(&object);
    // The name may still be generated.
    errors.retain(|error| error.path.to_string() != "metadata.name");
    errors.is_empty()
}

impl State {
    fn pool(&mut self, kind: Kind) -> &mut Pool {
        match kind {
            Kind::Port => &mut self.ports,
            // Indexes come from the families, of which each has a pool.
            Kind::Address(index) => &mut self.addresses[index],
        }
    }
}

/// One write's allocations.
struct Work<'a> {
    allocator: &'a ServiceAllocator,
    state: &'a mut State,
    objects: &'a Objects,
    service: (String, String),
    dry_run: bool,
    reserved: Vec<(Kind, u128)>,
    now: Instant,
}

impl Work<'_> {
    /// Reads all Services, the first time and once in a while.
    fn refresh(&mut self) -> Result<(), Status> {
        if self.state.given.is_some_and(|given| given < REFRESH_COUNT) {
            return Ok(());
        }
        self.reload()
    }

    fn reload(&mut self) -> Result<(), Status> {
        let services = self.objects.list("", "services", "")?;
        for pool in &mut self.state.addresses {
            pool.forget_stored(self.now);
        }
        self.state.ports.forget_stored(self.now);
        for service in &services {
            let text = |field: &str| service["metadata"][field].as_str().unwrap_or("").to_owned();
            let holder = Holder {
                service: (text("namespace"), text("name")),
                reserved: None,
            };
            for (kind, number) in self.allocator.numbers(service) {
                let pool = self.state.pool(kind);
                if pool.contains(number) {
                    pool.take(number, holder.clone());
                } else {
                    tracing::warn!(
                        service = %format!("{}/{}", holder.service.0, holder.service.1),
                        "a Service has an address or port outside of the configured ranges"
                    );
                }
            }
        }
        self.state.given = Some(0);
        Ok(())
    }

    fn revert(&mut self) {
        for (kind, number) in std::mem::take(&mut self.reserved) {
            self.state.pool(kind).give_back(number);
        }
    }

    /// Whether somebody else has a number, by the store's word.
    fn is_taken(&mut self, kind: Kind, number: u128) -> Result<bool, Status> {
        let Some(holder) = self.state.pool(kind).holder(number).cloned() else {
            return Ok(false);
        };
        if self.reserved.contains(&(kind, number)) {
            return Ok(true);
        }
        let (namespace, name) = &holder.service;
        let stored = match name.is_empty() {
            true => None,
            false => self.objects.find("", "services", namespace, name)?,
        };
        let has = stored.is_some_and(|s| self.allocator.numbers(&s).contains(&(kind, number)));
        if has {
            return Ok(true);
        }
        // One's own earlier try does not stand in the way.
        Ok(holder.is_fresh(self.now) && holder.service != self.service)
    }

    fn reserve(&mut self, kind: Kind, number: u128) {
        let holder = Holder {
            service: self.service.clone(),
            reserved: Some(self.now),
        };
        self.state.pool(kind).take(number, holder);
        self.reserved.push((kind, number));
        if !self.dry_run {
            self.state.given = self.state.given.map(|given| given + 1);
        }
    }

    /// A number asked for by name.
    fn take(&mut self, kind: Kind, number: u128) -> Result<(), Failure> {
        if !self.state.pool(kind).contains(number) {
            return Err(Failure::Refused(match kind {
                Kind::Address(_) => Refusal::OtherNetwork,
                Kind::Port => {
                    Refusal::OtherPort(self.allocator.first_port, self.allocator.last_port)
                }
            }));
        }
        if self.is_taken(kind, number)? {
            return Err(Failure::Refused(Refusal::Taken(match kind {
                Kind::Address(_) => "IP",
                Kind::Port => "port",
            })));
        }
        self.reserve(kind, number);
        Ok(())
    }

    /// Any number.
    fn choose(&mut self, kind: Kind) -> Result<u128, Failure> {
        let chance = || random::<8>().map(u64::from_ne_bytes);
        let mut found = self.state.pool(kind).choose(chance)?;
        if found.is_none() {
            // Some of them may be of Services that are gone.
            self.reload()?;
            found = self.state.pool(kind).choose(chance)?;
        }
        let number = found.ok_or(Failure::Refused(Refusal::Full))?;
        self.reserve(kind, number);
        Ok(number)
    }

    fn run(&mut self, new: &mut Value, old: Option<&Value>) -> Result<(), Problem> {
        let unchanged = families::is_unchanged_prefer_dual(new, old);
        if old.is_none() && !self.service.1.is_empty() {
            let (namespace, name) = &self.service;
            let there = self.objects.find("", "services", namespace, name)?;
            if there.is_some() {
                // It will be refused, with better words than ours.
                return Ok(());
            }
        }
        if !unchanged {
            self.addresses(new, old)?;
        }
        self.ports(new, old)?;
        self.health_check(new, old)
    }

    fn addresses(&mut self, new: &mut Value, old: Option<&Value>) -> Result<(), Problem> {
        if !service::needs_cluster_ip(new) || service::is_headless(new) {
            return Ok(());
        }
        let had: Vec<String> = match old {
            Some(old) if service::needs_cluster_ip(old) => {
                if service::is_headless(old) {
                    return Ok(());
                }
                let ips = service::spec_strs(old, "clusterIPs");
                ips.into_iter().map(str::to_owned).collect()
            }
            _ => Vec::new(),
        };
        let mut ips: Vec<String> = service::spec_strs(new, "clusterIPs")
            .into_iter()
            .map(str::to_owned)
            .collect();
        let families: Vec<String> = service::spec_strs(new, "ipFamilies")
            .into_iter()
            .map(str::to_owned)
            .collect();
        for (i, family) in families.iter().enumerate() {
            let wanted = ips.get(i).cloned().unwrap_or_default();
            if had.contains(&wanted) || i < had.len() {
                // It has that already, or validation tells that it may not
                // change.
                continue;
            }
            let Some(index) = self.allocator.index_of(family) else {
                continue;
            };
            let kind = Kind::Address(index);
            let given = match wanted.parse::<IpAddr>() {
                Err(_) => {
                    let number = self
                        .choose(kind)
                        .map_err(|f| address_problem(f, None, new))?;
                    ip_of(number, index_is_v6(family)).to_string()
                }
                Ok(ip) => {
                    self.take(kind, bits(ip))
                        .map_err(|f| address_problem(f, Some(&wanted), new))?;
                    wanted
                }
            };
            match ips.get_mut(i) {
                Some(place) => *place = given,
                None => ips.push(given),
            }
        }
        if let Some(first) = ips.first() {
            new["spec"]["clusterIP"] = json!(first);
            new["spec"]["clusterIPs"] = json!(ips);
        }
        Ok(())
    }

    fn ports(&mut self, new: &mut Value, old: Option<&Value>) -> Result<(), Problem> {
        if !service::needs_node_port(new) {
            return Ok(());
        }
        let had: BTreeSet<i64> = match old {
            Some(old) if service::needs_node_port(old) => {
                service::node_ports(old).into_iter().collect()
            }
            _ => BTreeSet::new(),
        };
        let allocates = service::allocates_node_ports(new);
        let list = service::ports(new).to_vec();
        // Ports of the same number and different protocols share a node port.
        let mut by_port: std::collections::BTreeMap<i64, i64> = std::collections::BTreeMap::new();
        let mut mine: BTreeSet<i64> = BTreeSet::new();
        for (i, port) in list.iter().enumerate() {
            let (number, wanted) = (service::int(port, "port"), service::int(port, "nodePort"));
            let wanted = match wanted {
                0 if !allocates => continue,
                // On creation, what another one of the same number asks for.
                0 if old.is_none() => by_port.get(&number).copied().unwrap_or_else(|| {
                    let same = list.iter().filter(|p| service::int(p, "port") == number);
                    let mut asked = same.map(|p| service::int(p, "nodePort"));
                    asked.find(|n| *n != 0).unwrap_or(0)
                }),
                wanted => wanted,
            };
            let given = match u128::try_from(wanted) {
                Ok(0) => {
                    let chosen = self.choose(Kind::Port).map_err(port_full)?;
                    i64::try_from(chosen).unwrap_or(0)
                }
                Ok(port) => {
                    if !had.contains(&wanted) && !mine.contains(&wanted) {
                        self.take(Kind::Port, port)
                            .map_err(|f| port_problem(f, i, wanted))?;
                    }
                    wanted
                }
                Err(_) => continue,
            };
            mine.insert(given);
            by_port.entry(number).or_insert(given);
            new["spec"]["ports"][i]["nodePort"] = given.into();
        }
        Ok(())
    }

    fn health_check(&mut self, new: &mut Value, old: Option<&Value>) -> Result<(), Problem> {
        if !service::needs_health_check(new) || old.is_some_and(service::needs_health_check) {
            return Ok(());
        }
        let wanted = service::int(&new["spec"], "healthCheckNodePort");
        let internal = |text: String| Problem::from(Status::internal(&text));
        let given = match u128::try_from(wanted) {
            Ok(0) => self.choose(Kind::Port).map_err(|f| match f {
                Failure::Refused(why) => internal(format!(
                    "failed to allocate a HealthCheck NodePort {wanted}: {why}"
                )),
                Failure::Status(status) => Problem::Status(status),
            })?,
            Ok(port) => {
                self.take(Kind::Port, port).map_err(|f| match f {
                    Failure::Refused(why) => internal(format!(
                        "failed to allocate requested HealthCheck NodePort {wanted}: {why}"
                    )),
                    Failure::Status(status) => Problem::Status(status),
                })?;
                port
            }
            Err(_) => return Ok(()),
        };
        new["spec"]["healthCheckNodePort"] = i64::try_from(given).unwrap_or(0).into();
        Ok(())
    }
}

fn index_is_v6(family: &str) -> bool {
    family == "IPv6"
}

fn ip_of(number: u128, v6: bool) -> IpAddr {
    match u32::try_from(number) {
        Ok(number) if !v6 => Ipv4Addr::from_bits(number).into(),
        _ => Ipv6Addr::from_bits(number).into(),
    }
}

impl Admission for ServiceAllocator {
    fn name(&self) -> &'static str {
        "ServiceAllocator"
    }

    fn handles(&self, operation: Operation) -> bool {
        operation != Operation::Connect
    }

    fn admit<'a>(&'a self, call: &'a mut Call) -> Step<'a> {
        if !call.is("", "services") || call.operation == Operation::Delete {
            return done(Ok(()));
        }
        done(self.admit_service(call))
    }

    fn validate<'a>(&'a self, call: &'a mut Call) -> Step<'a> {
        if call.is("", "services") && !call.dry_run {
            match call.operation {
                Operation::Delete => self.settle(&call.old),
                _ => self.confirm(call),
            }
        }
        done(Ok(()))
    }
}

use proptest::collection::vec;
use proptest::prelude::*;
use vm_memory::{Bytes, FileOffset, GuestAddress, GuestMemoryMmap};

use super::{Balloon, hostile, pages};
use crate::virtio::mock::{self, CANARY, MockDriver, WRITE};
use crate::virtio::{GuestMemory, VirtioDevice};

const PAGE: usize = 4096;
/// In the third region, which nothing else uses.
const PAGES: u64 = 0x100_0000;

fn active() -> MockDriver<Balloon> {
    let mem = mock::memory();
    let mut driver = MockDriver::with_memory(Balloon::new(&mem).unwrap(), mem);
    let features = driver.offered();
    driver.activate(features);
    driver
}

fn inflate(driver: &mut MockDriver<Balloon>, addrs: &[u64]) {
    let numbers: Vec<u8> =
        addrs.iter().flat_map(|addr| u32::try_from(addr / 4096).unwrap().to_le_bytes()).collect();
    driver.push(0, &[&numbers], &[]);
    driver.kick(0);
}

fn page(mem: &GuestMemoryMmap, addr: u64) -> Vec<u8> {
    let mut bytes = vec![0; PAGE];
    mem.read_slice(&mut bytes, GuestAddress(addr)).unwrap();
    bytes
}

fn is_discarded(driver: &MockDriver<Balloon>, addr: u64) -> bool {
    let page = page(driver.mem(), addr);
    assert!(page == [0; PAGE] || page == [CANARY; PAGE], "a page is either discarded or untouched");
    page == [0; PAGE]
}

fn read_u32(balloon: &Balloon, offset: usize) -> u32 {
    let config = balloon.config();
    u32::from_le_bytes(config[offset..offset + 4].try_into().unwrap())
}

#[test]
fn who_waits_for_reports_is_told_once_enough_has_come() {
    let mut driver = active();
    let (sender, told) = std::sync::mpsc::channel();
    let tell = |number: u32| {
        let sender = sender.clone();
        Box::new(move || sender.send(number).unwrap())
    };
    driver.device().await_reports(2 * PAGE as u64, tell(1));
    for _ in 0..2 {
        assert!(told.try_recv().is_err());
        driver.push_chain(2, &[(PAGES, PAGE as u32, WRITE)]);
        driver.kick(2);
    }
    assert_eq!(told.try_iter().collect::<Vec<_>>(), [1]);
    driver.device().await_reports(PAGE as u64, tell(2));
    assert_eq!(told.try_iter().collect::<Vec<_>>(), [2], "what has come before counts");
}

#[test]
fn inflated_pages_return_to_the_host() {
    let mut driver = active();
    let pages = [PAGES + 0x3000, PAGES + 0x1000, PAGES + 0x2000, PAGES + 0x7000];

    inflate(&mut driver, &pages);

    assert_eq!(driver.used(0)[0].len, 0);
    assert_eq!(driver.interrupts(), 1);
    for i in 0..10 {
        let addr = PAGES + i * 0x1000;
        assert_eq!(is_discarded(&driver, addr), pages.contains(&addr), "page {i}");
    }
    assert!(driver.canaries_live());
}

#[test]
fn a_discarded_page_can_be_used_again_without_a_word() {
    let mut driver = active();
    inflate(&mut driver, &[PAGES]);

    driver.mem().write_slice(&[7; PAGE], GuestAddress(PAGES)).unwrap();

    assert_eq!(page(driver.mem(), PAGES), [7; PAGE]);
}

#[test]
fn pages_beyond_memory_are_ignored() {
    let mut driver = active();

    inflate(&mut driver, &[0x50_0000, 0xfff_ffff_f000, PAGES]);

    assert!(!driver.interrupt().is_broken());
    assert!(is_discarded(&driver, PAGES));
}

#[test]
fn deflating_changes_no_memory() {
    let mut driver = active();
    driver.push(1, &[&(0x1000_u32).to_le_bytes()], &[]);

    driver.kick(1);

    assert_eq!(driver.used(1)[0].len, 0);
    assert!(!is_discarded(&driver, PAGES));
}

#[test]
fn reported_pages_return_to_the_host() {
    let mut driver = active();
    driver.push_chain(2, &[(PAGES, 0x2000, WRITE), (PAGES + 0x4000, 0x1000, WRITE)]);

    driver.kick(2);

    assert_eq!(driver.used(2)[0].len, 0);
    let discarded: Vec<_> = (0..6).map(|i| is_discarded(&driver, PAGES + i * 0x1000)).collect();
    assert_eq!(discarded, [true, true, false, false, true, false]);
}

#[test]
fn a_reported_range_is_cut_to_its_whole_pages() {
    let mut driver = active();
    driver.push_chain(2, &[(PAGES + 0x800, 0x2800, WRITE), (PAGES + 0x5001, 0xffe, WRITE)]);

    driver.kick(2);

    let discarded: Vec<_> = (0..6).map(|i| is_discarded(&driver, PAGES + i * 0x1000)).collect();
    assert_eq!(discarded, [false, true, true, false, false, false]);
}

#[test]
fn a_report_that_leaves_memory_discards_no_other_memory() {
    let mut driver = active();
    driver.push_chain(2, &[(PAGES + 0xf_f000, 0x2000, WRITE), (u64::MAX - 100, 0x1000, WRITE)]);

    driver.kick(2);

    assert!(is_discarded(&driver, PAGES + 0xf_f000), "the part in memory");
    assert!(!is_discarded(&driver, PAGES + 0xf_e000));
    assert!(driver.canaries_live());
}

#[test]
fn a_readable_buffer_is_no_report() {
    let mut driver = active();
    driver.push_chain(2, &[(PAGES, 0x1000, 0)]);

    driver.kick(2);

    assert!(!is_discarded(&driver, PAGES));
}

#[test]
fn a_target_appears_in_the_configuration_and_interrupts() {
    let driver = active();

    driver.device().set_target(3);

    assert_eq!(read_u32(&driver.device(), 0), 3 * 256);
    assert_eq!(driver.interrupts(), 1);
    assert_eq!(driver.interrupt().status(), 2, "a configuration change");
}

#[test]
fn a_target_set_before_the_driver_is_ready_is_not_lost() {
    let mem = mock::memory();
    let driver = MockDriver::with_memory(Balloon::new(&mem).unwrap(), mem);

    driver.device().set_target(u32::MAX);

    assert_eq!(read_u32(&driver.device(), 0), u32::MAX);
    assert_eq!(driver.interrupts(), 1);
}

#[test]
fn the_driver_writes_its_size_and_nothing_else() {
    let mut driver = active();
    driver.device().set_target(1);

    driver.write_config(0, &[0xff; 4]);
    driver.write_config(4, &7_u32.to_le_bytes());
    driver.write_config(6, &[1, 1, 1, 1, 1, 1, 1, 1]);
    driver.write_config(u64::MAX, &[1; 8]);

    assert_eq!(read_u32(&driver.device(), 0), 256);
    assert_eq!(read_u32(&driver.device(), 4), 0x0101_0007);
    driver.assert_config_is_told();
    assert_eq!(driver.device().config().len(), 8);
    driver.reset();
    assert_eq!(driver.config()[4..8], [0; 4], "a new driver has taken nothing yet");
}

#[test]
fn memory_shared_with_a_file_is_refused() {
    let file = tempfile::tempfile().unwrap();
    file.set_len(1 << 20).unwrap();
    let ranges = [(GuestAddress(0), 1 << 20, Some(FileOffset::new(file, 0)))];
    let mem = GuestMemory::new(GuestMemoryMmap::from_ranges_with_files(ranges).unwrap());

    let error = Balloon::new(&mem).unwrap_err();

    assert_eq!(error.to_string(), "guest memory must be private to be given back");
}

#[test]
fn neighbouring_pages_are_joined_and_their_number_is_bounded() {
    let numbers: Vec<u8> = [5_u32, 3, 9, 4, 5, u32::MAX].iter().flat_map(|page| page.to_le_bytes()).collect();

    assert_eq!(pages::read(&numbers[..], 100).unwrap(), [3..6, 9..10, 0xffff_ffff..0x1_0000_0000]);
    assert_eq!(pages::read(&numbers[..], 2).unwrap(), [3..4, 5..6]);
    assert_eq!(pages::read(&numbers[..11], 100).unwrap(), [3..4, 5..6], "half a number is none");
}

proptest! {
    #[test]
    fn nothing_a_driver_does_harms_the_device(bytes in vec(any::<u8>(), 0..400)) {
        hostile::run(&bytes);
    }
}

proptest::proptest! {
    #[test]
    fn a_saved_balloon_is_restored_with_its_sizes(
        mib in proptest::prelude::any::<u32>(),
        actual in proptest::prelude::any::<[u8; 4]>(),
    ) {
        use crate::persist::Persist;
        let balloon = || Balloon::new(&crate::virtio::hostile::memory()).unwrap();
        let (mut saved, mut copy) = (balloon(), balloon());
        saved.set_target(mib);
        saved.write_config(4, &actual);
        let state = postcard::to_allocvec(&saved.save().unwrap()).unwrap();
        assert_eq!(copy.restore(&postcard::from_bytes(&state).unwrap()), Ok(()));
        assert_eq!(copy.config(), saved.config());
    }
}
